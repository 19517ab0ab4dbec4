"""A table of embeddings whose gradient is the same in every run, with dropout.

Letters: R replicas, N tokens, V vocabulary, D width.
"""

import torch
from torch import Tensor

from zoology.kernels.embedding import reference
from zoology.kernels.embedding.dropout import column_numbers, row_numbers
from zoology.kernels.replicas import choose

__all__ = ["column_numbers", "embedding", "row_numbers"]


def embedding(
    weight: Tensor,
    tokens: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    dropout: float = 0.0,
    implementation: str | None = None,
) -> Tensor:
    """The rows of `weight` that `tokens` name.

    `torch.vmap` over models, (R, V, D), that read the same tokens sorts the tokens once for all of them.

    Args:
        weight: (V, D).
        tokens: (...) int64, in 0 .. V - 1.
        rows, columns: what says which elements are dropped, `row_numbers` of the tokens' shape and `column_numbers` of
            D; or None, and none is.
        dtype: of the result, which is that of its gradient; None for that of `weight`.
        dropout: the probability of an element to be dropped, below 1. Others are 1 / (1 - dropout) times as large.
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
    if (rows is None) != (columns is None) or not 0 <= dropout < 1 or (rows is None and dropout):
        raise ValueError(f"dropout = {dropout}: must be from 0 to below 1, and needs both rows and columns, or neither")
    if rows is not None and columns is not None:
        if rows.shape != tokens.shape or columns.shape != weight.shape[1:]:
            raise ValueError(
                f"rows, columns have the shapes {tuple(rows.shape)}, {tuple(columns.shape)}: "
                f"must be {tuple(tokens.shape)}, {tuple(weight.shape[1:])}"
            )
        if rows.dtype != torch.int32 or columns.dtype != torch.int32:
            raise ValueError(f"rows, columns are {rows.dtype}, {columns.dtype}: must be torch.int32")
    if choose(implementation, weight.device) == "reference":
        return reference.embedding(weight, tokens, rows, columns, dtype=dtype, dropout=dropout)
    from zoology.kernels.embedding import triton

    triton.limits(weight, tokens)
    rows = None if rows is None else rows.reshape(1, -1)
    x = triton.forward(weight.unsqueeze(0), tokens.reshape(1, -1), rows, columns, dtype or weight.dtype, dropout)
    return x.reshape(*tokens.shape, weight.shape[1])
