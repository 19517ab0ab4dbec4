"""Cross-entropy of a tied head, without the logits in memory.

    loss_m = log sum_v exp(h_m . w_v) - h_m . w_{t_m}

Sources: Cut Your Losses, arXiv:2411.09009 (logits block by block); online softmax, arXiv:1805.02867; FlashAttention,
arXiv:2205.14135 (which the forward pass is, with keys = values = w).

Letters: R replicas, M rows, V vocabulary, D width; h hidden, w weight, t targets.
"""

import torch
from torch import Tensor

from zoology.kernels.linear_cross_entropy import reference
from zoology.kernels.replicas import choose

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    judge: bool = True,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of each row, and whether its likeliest id is the target.

    Args:
        hidden: (M, D), or (R, M, D) for R models at once. `torch.vmap` over models gives the same kernel.
        weight: (V, D), or (R, V, D); rounded to the dtype of `hidden` where it is another.
        targets: (M,) int64, or (R, M), or (1, M) for all R. Ids in 0 .. V - 1, or `ignore_index`.
        ignore_index: the target of rows that do not count: their loss is 0, they are not right, and pass no gradient.
        judge: whether `right` is asked for. In Triton it is a fifth of the forward pass.
        implementation: "triton", "reference", or None for the device's.

    Returns:
        loss (M,) or (R, M), float32, or float64 where `hidden` is; right, of its shape, bool, or empty unless `judge`.
        Among equal logits the lowest id is the likeliest. A row with NaN is not right.

    Gradients flow to `hidden` and `weight`, each in its own dtype, for any gradient of the loss. In Triton they are
    taken once, not twice, and from outside of `torch.vmap`, not inside. A target outside its range raises IndexError on
    a CPU; in Triton, where nothing waits for the GPU, its loss is NaN.

    Raises:
        ValueError: shapes or dtypes that do not fit each other, fewer than 2 ids, or more than the kernel can take.
    """
    _check(hidden, weight, targets)
    if choose(implementation, hidden.device) == "reference":
        return reference.linear_cross_entropy(hidden, weight, targets, ignore_index=ignore_index, judge=judge)
    from zoology.kernels.linear_cross_entropy import triton

    triton.limits(hidden, weight)
    stacked = hidden.dim() == 3
    if not stacked:
        hidden, weight = hidden.unsqueeze(0), weight.unsqueeze(0)
    if targets.dim() == 1:
        targets = targets.unsqueeze(0)
    cast = weight.detach().to(hidden.dtype)
    loss, right, _, _ = triton.forward(hidden, weight, cast, targets, ignore_index, torch.is_grad_enabled(), judge)
    return (loss, right) if stacked else (loss.squeeze(0), right.squeeze(0))


def _check(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    rows = hidden.shape[:-1]
    fit = hidden.dim() in (2, 3) and hidden.dim() == weight.dim()
    fit = fit and hidden.shape[-1] == weight.shape[-1] and hidden.shape[:-2] == weight.shape[:-2]
    if not fit or targets.shape not in (rows, rows[1:], (1, *rows[1:])) or targets.dim() == 0:
        raise ValueError(
            f"hidden, weight, targets have the shapes {tuple(hidden.shape)}, {tuple(weight.shape)}, "
            f"{tuple(targets.shape)}: must be (M, D), (V, D), (M,), or (R, M, D), (R, V, D), (R, M) or (1, M)"
        )
    if weight.shape[-2] < 2:
        raise ValueError(f"weight has {weight.shape[-2]} rows: must have at least 2")
    if targets.dtype != torch.int64 or not hidden.is_floating_point() or not weight.is_floating_point():
        raise ValueError(
            f"hidden, weight, targets are {hidden.dtype}, {weight.dtype}, {targets.dtype}: "
            "must be floating, floating, torch.int64"
        )
