"""Causal softmax attention in PyTorch, its weights made whole.

Letters: B batch, T queries, S keys, H heads, d head width, w window.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, dropout: float = 0.0) -> Tensor:
    """The same function as `zoology.kernels.attention`."""
    weights = (torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5).masked_fill(
        hidden(q.shape[1], k.shape[1], window, q.device), -math.inf
    )
    weights = F.dropout(weights.softmax(-1), dropout, dropout > 0)
    return torch.einsum("bhts,bshd->bthd", weights.to(v.dtype), v)


def hidden(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(T, S): which keys a query does not see."""
    position = torch.arange(keys, device=device)
    ago = position[keys - queries :, None] - position
    return (ago < 0) | (ago >= (keys if window is None else window))


def check(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> None:
    """Refuse shapes that do not fit each other.

    Raises:
        ValueError: naming them.
    """
    if q.dim() != 4 or k.shape != v.shape or k.dim() != 4 or q[:, :0].shape != k[:, :0].shape:
        raise ValueError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}: must be (B, T, H, d) and "
            "(B, S, H, d) twice"
        )
    if q.shape[1] > k.shape[1]:
        raise ValueError(f"T = {q.shape[1]} queries and S = {k.shape[1]} keys: each query is one of the keys' tokens")
    if window is not None and window < 1:
        raise ValueError(f"window = {window}: must be at least 1")
