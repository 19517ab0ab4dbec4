"""A table of embeddings in PyTorch, with the gradient that PyTorch has for it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding(weight: Tensor, tokens: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """weight (V, D), tokens (...) -> (..., D)."""
    return F.embedding(tokens, weight).to(dtype or weight.dtype)
