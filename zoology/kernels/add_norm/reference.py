"""A sum and its LayerNorm in PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def add_norm(x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """The same function as `zoology.kernels.add_norm`."""
    s = x if y is None else x + y
    wide = torch.promote_types(s.dtype, torch.float32)
    u = F.layer_norm(s.to(wide), s.shape[-1:], weight.to(wide), bias.to(wide), eps)
    return s, u.to(s.dtype)
