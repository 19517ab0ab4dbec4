"""Dropout with a random number for each row, not for each element: of those a GPU makes few, and a CPU fewer still.

Each row has an odd number from torch's generator, each column a fixed one. An element is dropped where their product
modulo 2^32 is small: multiplicative hashing, as in `zoology.kernels.attention`.
"""

import torch
from torch import Tensor

GOLDEN = 0x9E3779B9


def column_numbers(width: int, device: torch.device) -> Tensor:
    """(width,) int32: fixed numbers of 32 bits that have nothing to do with one another.

    The square keeps small multiples of one from being another, as a product with any constant would not: such columns
    would be dropped together.
    """
    x = torch.arange(1, width + 1) * GOLDEN % 2**32
    y = (x * (x | 1) % 2**32) ^ (x >> 16)
    return torch.where(y >= 2**31, y - 2**32, y).to(device, torch.int32)


def row_dropout(x: Tensor, probability: float, columns: Tensor) -> Tensor:
    """x (..., D) with elements dropped, the others 1 / (1 - probability) times as large.

    Args:
        x: of any floating dtype.
        probability: of an element to be dropped, below 1.
        columns: (D,), `column_numbers`.
    """
    rows = torch.randint(2**31 - 1, (*x.shape[:-1], 1), dtype=torch.int32, device=x.device) * 2 + 1
    gone = rows * columns < round((probability - 0.5) * 2**32)  # products of int32 wrap
    return torch.where(gone, 0.0, x * (1 / (1 - probability)))
