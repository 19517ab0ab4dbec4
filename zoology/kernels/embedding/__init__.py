"""A table of embeddings whose gradient is the same in every run.

Letters: R replicas, N tokens, V vocabulary, D width.
"""

import torch
from torch import Tensor

from zoology.kernels.embedding import reference
from zoology.kernels.replicas import choose

__all__ = ["embedding"]


def embedding(
    weight: Tensor, tokens: Tensor, *, dtype: torch.dtype | None = None, implementation: str | None = None
) -> Tensor:
    """The rows of `weight` that `tokens` name.

    `torch.vmap` over models, (R, V, D), that read the same tokens sorts the tokens once for all of them.

    Args:
        weight: (V, D).
        tokens: (...) int64, in 0 .. V - 1.
        dtype: of the rows, which is that of their gradient; None for that of `weight`.
        implementation: "triton", "reference", or None for the device's.

    Returns:
        (..., D). Its gradient is summed in float32 in Triton, without atomics: the same
        numbers in every run; once, not twice.

    Raises:
        ValueError: a shape or dtype that does not fit, or that the kernel cannot take.
    """
    if weight.dim() != 2 or weight.shape[0] < 1:
        raise ValueError(f"weight has the shape {tuple(weight.shape)}: must be (V, D), V >= 1")
    if tokens.dtype != torch.int64 or not weight.is_floating_point():
        raise ValueError(f"weight, tokens are {weight.dtype}, {tokens.dtype}: must be floating, torch.int64")
    if choose(implementation, weight.device) == "reference":
        return reference.embedding(weight, tokens, dtype=dtype)
    from zoology.kernels.embedding import triton

    triton.limits(weight, tokens)
    rows = triton.forward(weight.unsqueeze(0), tokens.reshape(1, -1), dtype or weight.dtype)
    return rows.reshape(*tokens.shape, weight.shape[1])
