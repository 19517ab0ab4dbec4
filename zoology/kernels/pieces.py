"""Sums that programs have left in pieces, added in order by one Triton kernel.

No atomics: the same numbers in every run. A kernel of ours, as torch.compile would make one of its own for each shape
and time several of it, which takes longer than all that they could save.

Letters: R replicas, P pieces, L elements of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["P", "L"])
def add_kernel(parts, out, P, L, PIECES: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    replica = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    parts += replica * P * L
    acc = tl.zeros([PIECES, WIDTH], WIDE)
    for first in range(0, P, PIECES):
        piece = first + tl.arange(0, PIECES)
        there = (piece < P)[:, None] & (at < L)[None, :]
        acc += tl.load(parts + piece.to(tl.int64)[:, None] * L + at[None, :], mask=there, other=0.0).to(WIDE)
    tl.store(out + replica * L + at, tl.sum(acc, 0), mask=at < L)


def add_pieces(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """parts (R, P, ...), dense -> (R, ...) in `dtype`, summed in float32, or in float64 where the parts are."""
    replicas, count = parts.shape[:2]
    out = parts.new_empty(replicas, *parts.shape[2:], dtype=dtype)
    if not parts.numel():
        return out.zero_()
    elements = out.numel() // replicas
    pieces = min(1024, max(16, triton.next_power_of_2(count)))
    width = max(8, min(128, 2048 // pieces))
    add_kernel[(triton.cdiv(elements, width), replicas)](
        parts, out, count, elements, PIECES=pieces, WIDTH=width, num_warps=4,
        WIDE=tl.float64 if parts.dtype == torch.float64 else tl.float32,
    )  # fmt: skip
    return out
