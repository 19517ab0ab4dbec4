"""A table of embeddings in PyTorch, with the gradient that PyTorch has for it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoology.kernels.embedding.dropout import drop


def embedding(
    weight: Tensor,
    tokens: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """weight (V, D), tokens and rows (...), columns (D,) -> (..., D)."""
    return drop(F.embedding(tokens, weight).to(dtype or weight.dtype), rows, columns, dropout)
