"""The pre-norm residual stream: what a layer adds to it, and its LayerNorm, which the next layer reads.

    s = x + y,   u = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias

Source: LayerNorm, arXiv:1607.06450; before the layer, arXiv:2002.04745.

Letters: R replicas, M rows of each, D width.
"""

from torch import Tensor

from zoology.kernels.add_norm import reference
from zoology.kernels.replicas import choose

__all__ = ["add_norm"]


def add_norm(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One layer's sum and norm.

    Args:
        x: (..., D), the stream.
        y: what is added to it, of the same shape and dtype; or None for nothing.
        weight, bias: (D,).
        eps: under the root.
        implementation: "triton", "reference", or None for the device's. Only gradients differ: in Triton one pass
            makes them all. torch.compile fuses the forward pass with what stands around it.

    Returns:
        s and u, in the dtype of x. The norm is computed in float32 or better. In Triton gradients are taken once.

    Raises:
        ValueError: shapes or dtypes that do not fit each other.
    """
    if weight.shape != x.shape[-1:] or bias.shape != weight.shape:
        raise ValueError(
            f"x, weight, bias have shapes {tuple(x.shape)}, {tuple(weight.shape)}, {tuple(bias.shape)}: "
            "must be (..., D), (D,), (D,)"
        )
    if y is not None and (y.shape != x.shape or y.dtype != x.dtype):
        raise ValueError(f"x is {tuple(x.shape)} {x.dtype}, y {tuple(y.shape)} {y.dtype}: must be alike")
    if choose(implementation, x.device) == "reference":
        return reference.add_norm(x, y, weight, bias, eps=eps)
    from zoology.kernels.add_norm import triton

    rows = (1, -1, x.shape[-1])
    s, u = triton.forward(
        x.reshape(rows), None if y is None else y.reshape(rows), weight.unsqueeze(0), bias.unsqueeze(0), eps
    )
    return s.reshape(x.shape), u.reshape(x.shape)
