"""A table of embeddings in Triton, and the `torch.library` ops around it.

Tokens are sorted once (stably), so that each id's rows of the gradient lie together in that order, a *segment*. One
program sums the segments of a few ids. The order is cut into windows of fixed size: where a window lies within one
segment, as happens where a filler is most of the tokens, a first kernel has summed it, and the second takes the sum.
So no program adds more than two windows and their number, and nothing depends on which program comes first. Elements
that were dropped are dropped again as they are read: there is no pass over memory for it.

Letters: R replicas, Q token lists (R, or 1 that all share), N tokens, V vocabulary, D width, W window.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels.embedding.dropout import drop, limit
from zoology.kernels.replicas import fold, fold_shared, unfold

TOGETHER, LEAST_WINDOW = 8, 32
"""Rows that a program reads at a time: of one segment, and of a window, of which this is the least."""


@triton.jit
def _dropped(x, rows, columns, at, there, dims, limit, D: tl.constexpr):
    """x with the elements that rows[at] and columns[dims] drop as 0; the axes of x are those of `at`, and `dims`."""
    column = tl.load(columns + dims, mask=dims < D, other=0)
    number = tl.expand_dims(tl.load(rows + at, mask=there, other=0), -1)
    return tl.where(number * column >= limit, x, 0.0)  # products of int32 wrap


@triton.jit
def _rows_kernel(
    weight, tokens, rows, columns, out, N, weight_r, each, rows_r, limit, rate,
    D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """out[r, n] = weight[r, tokens[n]]"""
    replica = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    token = tl.load(tokens + replica * each + n, mask=n < N, other=0)
    there = (n < N)[:, None] & (dims < D)[None, :]
    x = tl.load(weight + replica * weight_r + token[:, None] * D + dims[None, :], mask=there, other=0.0)
    if DROP:
        x = x.to(out.dtype.element_ty).to(tl.float32) * rate
        x = _dropped(x, rows + replica * rows_r, columns, n, n < N, dims, limit, D)
    tl.store(out + (replica * N + n)[:, None] * D + dims[None, :], x, mask=there)


@triton.jit
def _read(
    grad, scale, rows, columns, row, inside, dims, limit,
    D: tl.constexpr, SCALED: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Rows of the gradient in float32: `scale` times as large, if SCALED; without what was dropped, if DROP."""
    there = tl.expand_dims(inside, -1) & (dims < D)
    x = tl.load(grad + tl.expand_dims(row, -1) * D + dims, mask=there, other=0.0).to(tl.float32)
    if SCALED:
        x *= tl.expand_dims(tl.load(scale + row, mask=inside, other=0.0), -1)
    if DROP:
        x = _dropped(x, rows, columns, row, inside, dims, limit, D)
    return x


@triton.jit(do_not_specialize=["window"])
def _windows_kernel(
    grad, scale, rows, columns, order, ids, sums, N, window, stride_order, rows_r, limit,
    D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SCALED: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """sums[r, w] = the sum of window w, if it holds a single id; else nothing is written."""
    replica = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * window
    dims = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    ids += replica * stride_order + first
    order += replica * stride_order + first + tl.arange(0, ROWS)
    grad, scale, rows = grad + replica * N * D, scale + replica * N, rows + replica * rows_r
    if tl.load(ids) == tl.load(ids + window - 1):
        acc = tl.zeros([ROWS, WIDTH], tl.float32)
        for k in range(0, window, ROWS):
            row = tl.load(order + k)
            acc += _read(grad, scale, rows, columns, row, row >= 0, dims, limit, D, SCALED, DROP)
        at = replica * (N // window) + tl.program_id(0)
        tl.store(sums + at * D + dims, tl.sum(acc, 0), mask=dims < D)


@triton.jit(do_not_specialize=["window"])
def _segments_kernel(
    grad, scale, rows, columns, order, starts, sums, out,
    N, V, window, stride_order, stride_starts, rows_r, limit, rate,
    D: tl.constexpr, IDS: tl.constexpr, TOGETHER: tl.constexpr, WIDTH: tl.constexpr,
    SCALED: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """out[r, v] = the rows before the segment's first whole window, the whole windows, the rows after them."""
    replica = tl.program_id(1).to(tl.int64)
    ids = tl.program_id(0) * IDS + tl.arange(0, IDS)
    dims = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    known, wide = ids < V, dims < D
    ahead = tl.arange(0, TOGETHER)
    begin = tl.load(starts + replica * stride_starts + ids, mask=known, other=0)
    end = tl.load(starts + replica * stride_starts + ids + 1, mask=known, other=0)
    first, last = tl.cdiv(begin, window), end // window  # the whole windows
    first = tl.minimum(first, tl.maximum(last, 0))
    whole = first * window >= begin
    # Segments without a whole window have all their rows before it.
    head = tl.where(whole & (last > first), first * window, end)
    tail = tl.where(whole & (last > first), last * window, end)
    count = tl.where(whole & (last > first), last - first, 0)
    loose = (head - begin) + (end - tail)
    grad, scale, rows = grad + replica * N * D, scale + replica * N, rows + replica * rows_r
    acc = tl.zeros([IDS, WIDTH], tl.float32)
    for k in range(0, tl.max(loose, 0), TOGETHER):
        step = k + ahead[None, :]
        inside = step < loose[:, None]
        at = begin[:, None] + step
        at = tl.where(at < head[:, None], at, at - head[:, None] + tail[:, None])
        row = tl.load(order + replica * stride_order + at, mask=inside, other=0)
        acc += tl.sum(_read(grad, scale, rows, columns, row, inside, dims, limit, D, SCALED, DROP), 1)
    sums += replica * (N // window) * D
    for k in range(0, tl.max(count, 0), TOGETHER):
        step = k + ahead[None, :]
        inside = step < count[:, None]
        at = first[:, None] + step
        values = tl.load(
            sums + at[:, :, None] * D + dims[None, None, :], mask=inside[:, :, None] & wide[None, None, :], other=0.0
        )
        acc += tl.sum(values, 1)
    if DROP:
        acc *= rate
    at = replica * V * D + ids[:, None] * D + dims[None, :]
    tl.store(out + at, acc, mask=known[:, None] & wide[None, :])


def _words(rows: Tensor | None, columns: Tensor | None, dropout: float, instead: Tensor) -> dict[str, Any]:
    """What kernels are told of dropout: rows (R, N) or (1, N), columns (D,); `instead` of a tensor that is not read."""
    if rows is None or columns is None:
        return {"rows": instead, "columns": instead, "rows_r": 0, "limit": 0, "DROP": False}
    return {
        "rows": rows.contiguous(),
        "columns": columns.contiguous(),
        "rows_r": rows.shape[1] if rows.shape[0] > 1 else 0,
        "limit": limit(dropout),
        "DROP": True,
    }


def window(n: int) -> int:
    """W: near the square root of N, so that the windows of one id that is all tokens are as few as their rows."""
    return min(512, max(LEAST_WINDOW, triton.next_power_of_2(int(n**0.5))))


def launch(
    grad: Tensor,
    tokens: Tensor,
    vocab_size: int,
    *,
    scale: Tensor | None = None,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Both kernels: grad (R, N, D), of rows `scale` (R, N) times as large and without what was dropped, tokens (R, N)
    or (1, N) -> (R, V, D) float32. Tokens outside of 0 .. V - 1 are left out."""
    replicas, n, d = grad.shape
    if not grad.numel():
        return grad.new_zeros(replicas, vocab_size, d, dtype=torch.float32)
    if replicas > 1 and tokens.shape[0] > 1 and tokens.stride(0) == 0:
        tokens = tokens[:1]
    # A sort goes over 8 bits at a time: no more of them than ids have, which are below 2^31, see `limits`.
    narrow = torch.int16 if vocab_size < 2**15 else torch.int32
    ids, order = torch.sort(tokens.to(narrow), dim=1, stable=True)
    bounds = torch.arange(vocab_size + 1, device=grad.device, dtype=narrow).expand(ids.shape[0], -1)
    starts = torch.searchsorted(ids, bounds.contiguous(), out_int32=True)
    grad = grad.contiguous()
    words = {"scale": grad if scale is None else scale.contiguous(), "SCALED": scale is not None, "D": d}
    words |= _words(rows, columns, dropout, grad)
    size, width = window(n), min(128, max(16, triton.next_power_of_2(d)))
    out = grad.new_empty(replicas, vocab_size, d, dtype=torch.float32)
    sums = grad.new_empty(replicas, n // size, d, dtype=torch.float32)
    each = n if ids.shape[0] > 1 else 0
    if n >= size:
        _windows_kernel[(n // size, replicas, triton.cdiv(d, width))](
            grad, order=order, ids=ids, sums=sums, N=n, window=size, stride_order=each,
            ROWS=LEAST_WINDOW, WIDTH=width, num_warps=4, **words,
        )  # fmt: skip
    together = 1024 // width
    _segments_kernel[(triton.cdiv(vocab_size, together), replicas, triton.cdiv(d, width))](
        grad, order=order, starts=starts, sums=sums, out=out, N=n, V=vocab_size, window=size, stride_order=each,
        stride_starts=vocab_size + 1 if each else 0, rate=1 / (1 - dropout),
        IDS=together, TOGETHER=TOGETHER, WIDTH=width, num_warps=4, **words,
    )  # fmt: skip
    return out


def limits(weight: Tensor, tokens: Tensor) -> None:
    """Refuse what the kernels cannot take.

    Raises:
        ValueError: naming the limit.
    """
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"weight is {weight.dtype}: the Triton kernel takes float32, bfloat16 and float16")
    if max(weight.shape[0] + 1, tokens.numel()) >= 2**31:
        raise ValueError(f"V = {weight.shape[0]}, N = {tokens.numel()}: the Triton kernel takes less than 2^31 of each")


@torch.library.custom_op("zoology::embedding", mutates_args=())
def forward(
    weight: Tensor, tokens: Tensor, rows: Tensor | None, columns: Tensor | None, dtype: torch.dtype, dropout: float
) -> Tensor:
    """weight (R, V, D), tokens (R, N) or (1, N), rows likewise, columns (D,) -> (R, N, D) in some dtype."""
    replicas, _, d = weight.shape
    n = tokens.shape[1]
    out = weight.new_empty(replicas, n, d, dtype=dtype)
    if out.numel():
        weight, tokens = weight if weight[0].is_contiguous() else weight.contiguous(), tokens.contiguous()
        width = triton.next_power_of_2(d)
        each = max(1, 2048 // width)
        _rows_kernel[(triton.cdiv(n, each), replicas)](
            weight, tokens, out=out, N=n, weight_r=weight.stride(0), each=n if tokens.shape[0] > 1 else 0,
            D=d, ROWS=each, WIDTH=width, rate=1 / (1 - dropout), **_words(rows, columns, dropout, weight),
        )  # fmt: skip
    return out


def _rows(
    weight: Tensor, tokens: Tensor, rows: Tensor | None, columns: Tensor | None, dtype: torch.dtype, dropout: float
) -> Tensor:
    """The same in PyTorch."""
    if tokens.shape[0] == 1:
        x = weight[:, tokens.squeeze(0)].to(dtype)
    else:
        x = weight.gather(1, tokens.unsqueeze(-1).expand(-1, -1, weight.shape[2])).to(dtype)
    return drop(x, rows, columns, dropout)


INLINED = {forward: _rows}


@forward.register_fake
def _(
    weight: Tensor, tokens: Tensor, rows: Tensor | None, columns: Tensor | None, dtype: torch.dtype, dropout: float
) -> Tensor:
    return weight.new_empty(weight.shape[0], tokens.shape[1], weight.shape[2], dtype=dtype)


@torch.library.custom_op("zoology::embedding_gradient", mutates_args=())
def gradient(
    grad: Tensor, tokens: Tensor, rows: Tensor | None, columns: Tensor | None, vocab_size: int, dropout: float
) -> Tensor:
    """grad (R, N, D), tokens (R, N) or (1, N) -> (R, V, D) float32: each id's rows of `grad`, summed."""
    return launch(grad, tokens, vocab_size, rows=rows, columns=columns, dropout=dropout)


@gradient.register_fake
def _(
    grad: Tensor, tokens: Tensor, rows: Tensor | None, columns: Tensor | None, vocab_size: int, dropout: float
) -> Tensor:
    return grad.new_empty(grad.shape[0], vocab_size, grad.shape[2], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, tokens, rows, columns, _, ctx.dropout = inputs
    ctx.vocab_size, ctx.dtype = weight.shape[1], weight.dtype
    ctx.save_for_backward(tokens, rows, columns)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    by_weight = gradient(grad, *ctx.saved_tensors, ctx.vocab_size, ctx.dropout)
    return by_weight.to(ctx.dtype), None, None, None, None, None


forward.register_autograd(_backward, setup_context=_setup)


def _folded(info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> list[Tensor | None]:
    """The first, each model's own; tokens and rows, where they are not what all share; and the columns."""
    first = fold(args[0], in_dims[0], info.batch_size)
    replicas = first.shape[0] // info.batch_size
    pairs = zip(args[1:3], in_dims[1:3], strict=True)
    shared = (None if x is None else fold_shared(x, dim, info.batch_size, replicas) for x, dim in pairs)
    if in_dims[3] is not None:
        raise ValueError("the columns' numbers are the same for all models")
    return [first, *shared, args[3]]


@forward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    return unfold(forward(*_folded(info, in_dims, args), *args[4:]), info.batch_size), 0


@gradient.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    return unfold(gradient(*_folded(info, in_dims, args), *args[4:]), info.batch_size), 0
