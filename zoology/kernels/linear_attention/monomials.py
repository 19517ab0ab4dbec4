"""Taylor features inside the Triton kernels of linear attention: monomials without weights, in an order of their own.

phi(x) has 1, x_i and x_i x_j, each with a weight; the kernels make the products alone, and put the square of the weight
on the sums that the products meet. Their order goes by d = (j - i) mod f: for d = 0, ..., f // 2 one row for each i
(where f is even, the last d has half of them), then x_i alone, then 1. A row of i has PERIOD of them, a power of two:
so i is the same in each tile of FT >= PERIOD features, and x_i is made once for all tiles. What stands at the ends of
rows is 0. An x_i is picked by a matrix of 0 and 1, exactly, on the matrix units: nothing is gathered, and in the
backward pass nothing is scattered. Inside chunks such matrices of second factors come from memory, where the next is
on its way while one is used; one that is made there is waited for by all warps.

Without a map x is its features, as it is.

Letters: f width of x (F, padded FW), FT features of a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels.linear_attention.tiles import tile


def period(f: int) -> int:
    return triton.next_power_of_2(f)


def kept(f: int, taylor: bool) -> int:
    """Rows of a state between the kernels."""
    return (f // 2 + 2) * period(f) + 1 if taylor else f


_tables: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def second_factors(f: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """For each feature but the constant, the row that picks its second factor: (KEPT - 1, FW). Kept, as it is small."""
    key = f, dtype, device
    if key in _tables:
        return _tables[key]
    features = torch.arange(kept(f, True) - 1, device=device)
    i, d = features % period(f), features // period(f)
    there = (d < f // 2) | ((d == f // 2) & ((i < f // 2) | (f % 2 == 1)))
    j = torch.where(there, (i + d) % f, -1)
    table = (j[:, None] == torch.arange(max(16, period(f)), device=device)).to(dtype)
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return table  # filled when the graph runs, so of no use to others
        torch.cuda.current_stream(device).synchronize()  # the next to read it may be on another stream
    return _tables.setdefault(key, table)


@triton.jit
def factors(c, F: tl.constexpr, PERIOD: tl.constexpr):
    """i and j of features c, where -1 stands for a factor 1, and j = -2 for 0."""
    i, d = c % PERIOD, c // PERIOD
    half: tl.constexpr = F // 2
    j = (i + d) % F
    if F % 2 == 0:
        j = tl.where((d == half) & (i >= half), -2, j)
    j = tl.where(d <= half, j, tl.where(c <= (half + 2) * PERIOD, -1, -2))
    return tl.where(c == (half + 2) * PERIOD, -1, i), j


@triton.jit
def public(c, F: tl.constexpr, PERIOD: tl.constexpr, TAYLOR: tl.constexpr):
    """Where features c are in `taylor_features`, beyond its end where they are 0; and their weights, 1 where 0."""
    if TAYLOR:
        i, j = factors(c, F, PERIOD)
        d = c // PERIOD
        half: tl.constexpr = F // 2
        root: tl.constexpr = F**-0.25
        w = tl.where(d == 0, root * root * 0.5**0.5, tl.where(d <= half, root * root, root))
        at = tl.where(d <= half, 1 + F + d * F + i, 1 + i)  # of the constant, i = -1: 0
        known = (j > -2) & (i < F)
        w = tl.where(known & (i >= 0), w, 1.0)
        at = tl.where(known, at, (F + 1) * (F + 2) // 2)
    else:
        at, w = c, tl.full(c.shape, 1.0, tl.float32)
    return at, w


@triton.jit
def pick(i, FW: tl.constexpr, dtype: tl.constexpr):
    """(FW, FT): x @ pick is x_i; 0 for an i below 0."""
    return (tl.arange(0, FW)[:, None] == i[None, :]).to(dtype)


@triton.jit
def firsts(x, c, F: tl.constexpr, FW: tl.constexpr, PERIOD: tl.constexpr, TAYLOR: tl.constexpr):
    """x_i of features c but the constant, in float32: (ROWS, FT). Without a map, x."""
    if TAYLOR:
        i = factors(c, F, PERIOD)[0]
        a = tl.dot(x, pick(i, FW, x.dtype), input_precision="ieee")
    else:
        a = x.to(tl.float32)
    return a


@triton.jit
def seconds(x, picks, c, F: tl.constexpr, PERIOD: tl.constexpr):
    """x_j of features c, in float32: (ROWS, FT); 1 where there is none, and 0 for the constant, which is left out.
    `picks` (FT, FW) are their rows of `second_factors`."""
    i, j = factors(c, F, PERIOD)
    alone = tl.where((j == -1) & (i >= 0), 1.0, 0.0)
    return tl.dot(x, tl.trans(picks), input_precision="ieee") + alone[None, :]


@triton.jit
def by_firsts(
    grad, out, c, F: tl.constexpr, FW: tl.constexpr, PERIOD: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr
):
    """out (ROWS, FW), and for each feature the gradient (ROWS, FT) of its x_i."""
    i = factors(c, F, PERIOD)[0]
    return tl.dot(grad.to(NARROW), tl.trans(pick(i, FW, NARROW)), out, input_precision=PRECISION)


@triton.jit
def by_seconds(grad, picks, out, NARROW: tl.constexpr, PRECISION: tl.constexpr):
    """out (ROWS, FW), and for each feature the gradient (ROWS, FT) of its x_j; `picks` as in `seconds`."""
    return tl.dot(grad.to(NARROW), picks.to(NARROW), out, input_precision=PRECISION)


@triton.jit
def turned(
    x, rows, stride, length, c, F: tl.constexpr, FW: tl.constexpr, PERIOD: tl.constexpr, TAYLOR: tl.constexpr,
    PAIRS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Features c of tokens, as columns, in float32: (FT, ROWS). Beyond `length` 0, but for the constant. PAIRS: all of
    them are of two factors."""
    if TAYLOR:
        i, j = factors(c, F, PERIOD)
        at = tl.arange(0, FW)
        token = tl.trans(tile(x, rows, stride, length, F, FW, EVEN))
        a = tl.dot((i[:, None] == at[None, :]).to(token.dtype), token, input_precision="ieee")
        b = tl.dot((j[:, None] == at[None, :]).to(token.dtype), token, input_precision="ieee")
        if not PAIRS:
            a += tl.where(i == -1, 1.0, 0.0)[:, None]
            b += tl.where(j == -1, 1.0, 0.0)[:, None]
        phi = a * b
    else:
        mask = (rows < length)[None, :] & (c < F)[:, None]
        phi = tl.load(x + rows[None, :] * stride + c[:, None], mask=mask, other=0.0).to(tl.float32)
    return phi
