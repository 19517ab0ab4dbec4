"""Dropout with a random number for each row, not for each element: of those a GPU makes few, and a CPU fewer still.

Each row has an odd number from torch's generator, each column a fixed one. An element is dropped where their product
modulo 2^32 is small: multiplicative hashing, as in `zoology.kernels.attention`. So a backward pass needs no mask, and a
kernel that reads rows in any order can drop their elements.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = 0x9E3779B9


@torch.library.custom_op("zoology::row_numbers", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _row_numbers(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.randint(2**31 - 1, shape, dtype=torch.int32, device=like.device).mul_(2).add_(1)


@_row_numbers.register_fake
def _(like: Tensor, shape: Sequence[int]) -> Tensor:
    return like.new_empty(shape, dtype=torch.int32)


def row_numbers(columns: Tensor, *shape: int) -> Tensor:
    """(*shape) int32: random odd numbers of 32 bits, by the generator of the device of the columns' numbers.

    An op that the compiler does not see into: it would make a row's number once for each of its elements.
    """
    return _row_numbers(columns, shape)


def column_numbers(width: int, device: torch.device) -> Tensor:
    """(width,) int32: fixed numbers of 32 bits that have nothing to do with one another.

    The square keeps small multiples of one from being another, as a product with any constant would not: such columns
    would be dropped together.
    """
    x = torch.arange(1, width + 1) * GOLDEN % 2**32
    y = (x * (x | 1) % 2**32) ^ (x >> 16)
    return torch.where(y >= 2**31, y - 2**32, y).to(device, torch.int32)


def limit(probability: float) -> int:
    """The product below which an element is dropped, for a probability below 1."""
    return round((probability - 0.5) * 2**32)


def drop(x: Tensor, rows: Tensor | None, columns: Tensor | None, probability: float) -> Tensor:
    """x (..., D) with elements dropped, the others 1 / (1 - probability) times as large; rows (...), columns (D,).
    Without these, x."""
    if rows is None or columns is None:
        return x
    gone = rows.unsqueeze(-1) * columns < limit(probability)  # products of int32 wrap
    return torch.where(gone, 0.0, x * (1 / (1 - probability)))
