"""A linear map of many rows, laid out for a GPU.

The gradient of a weight is a product over all rows, B T of them, whose result is small: one block of a GPU would walk
them all for each replica, and the others idle. Cut in pieces, all of it works, and the sum over the pieces is
autograd's own.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PIECES, LEAST_ROWS = 16, 128
"""Into how many pieces rows are cut, and the rows that a piece must have to be worth it."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, x (..., K), weight (N, K), bias (N,) -> (..., N), many rows as one batched product of pieces."""
    rows = x.numel() // weight.shape[1]
    pieces = math.gcd(rows, PIECES)
    if rows < PIECES * LEAST_ROWS:
        return F.linear(x, weight, bias)
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    turned = weight.to(dtype).t()
    y = x.to(dtype).reshape(pieces, -1, weight.shape[1]) @ turned.expand(pieces, *turned.shape)
    y = y.view(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias.to(dtype)
