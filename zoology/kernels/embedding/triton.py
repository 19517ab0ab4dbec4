"""A table of embeddings in Triton, and the `torch.library` ops around it.

Tokens are sorted once (stably), so that each id's rows of the gradient lie together in that order, a *segment*. One
program sums the segments of a few ids. The order is cut into windows of fixed size: where a window lies within one
segment, as happens where a filler is most of the tokens, a first kernel has summed it, and the second takes the sum.
So no program adds more than two windows and their number, and nothing depends on which program comes first.

Letters: R replicas, Q token lists (R, or 1 that all share), N tokens, V vocabulary, D width, W window.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels.replicas import fold, fold_shared, unfold

TOGETHER = 8
"""Rows of one segment that a program reads at a time."""


@triton.jit
def _rows_kernel(weight, tokens, out, N, weight_r, each, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """out[r, n] = weight[r, tokens[n]]"""
    replica = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    token = tl.load(tokens + replica * each + rows, mask=rows < N, other=0)
    there = (rows < N)[:, None] & (dims < D)[None, :]
    x = tl.load(weight + replica * weight_r + token[:, None] * D + dims[None, :], mask=there, other=0.0)
    tl.store(out + (replica * N + rows)[:, None] * D + dims[None, :], x, mask=there)


@triton.jit
def _windows_kernel(
    grad, scale, order, ids, sums, N, stride_order,
    D: tl.constexpr, WINDOW: tl.constexpr, WIDTH: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """sums[r, w] = the sum of window w, if it holds a single id; else nothing is written. SCALED: of rows `scale` times
    as large."""
    windows = N // WINDOW
    window, replica = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = window * WINDOW + tl.arange(0, WINDOW)
    dims = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    ids += replica * stride_order + window * WINDOW
    if tl.load(ids) == tl.load(ids + WINDOW - 1):
        row = tl.load(order + replica * stride_order + at)
        values = tl.load(grad + replica * N * D + row[:, None] * D + dims[None, :], mask=(dims < D)[None, :], other=0.0)
        values = values.to(tl.float32)
        if SCALED:
            values *= tl.load(scale + replica * N + row)[:, None]
        total = tl.sum(values, 0)
        tl.store(sums + (replica * windows + window) * D + dims, total, mask=dims < D)


@triton.jit
def _segments_kernel(
    grad, scale, order, starts, sums, out, N, V, stride_order, stride_starts,
    D: tl.constexpr, WINDOW: tl.constexpr, IDS: tl.constexpr, TOGETHER: tl.constexpr, WIDTH: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """out[r, v] = the rows before the segment's first whole window, the whole windows, the rows after them."""
    replica = tl.program_id(1).to(tl.int64)
    ids = tl.program_id(0) * IDS + tl.arange(0, IDS)
    dims = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    known, wide = ids < V, dims < D
    ahead = tl.arange(0, TOGETHER)
    begin = tl.load(starts + replica * stride_starts + ids, mask=known, other=0)
    end = tl.load(starts + replica * stride_starts + ids + 1, mask=known, other=0)
    first, last = tl.cdiv(begin, WINDOW), end // WINDOW  # the whole windows
    first = tl.minimum(first, tl.maximum(last, 0))
    whole = first * WINDOW >= begin
    # Segments without a whole window have all their rows before it.
    head = tl.where(whole & (last > first), first * WINDOW, end)
    tail = tl.where(whole & (last > first), last * WINDOW, end)
    count = tl.where(whole & (last > first), last - first, 0)
    loose = (head - begin) + (end - tail)
    acc = tl.zeros([IDS, WIDTH], tl.float32)
    for k in range(0, tl.max(loose, 0), TOGETHER):
        step = k + ahead[None, :]
        inside = step < loose[:, None]
        at = begin[:, None] + step
        at = tl.where(at < head[:, None], at, at - head[:, None] + tail[:, None])
        row = tl.load(order + replica * stride_order + at, mask=inside, other=0)
        values = tl.load(
            grad + replica * N * D + row[:, :, None] * D + dims[None, None, :],
            mask=inside[:, :, None] & wide[None, None, :],
            other=0.0,
        ).to(tl.float32)
        if SCALED:
            values *= tl.load(scale + replica * N + row, mask=inside, other=0.0)[:, :, None]
        acc += tl.sum(values, 1)
    sums += replica * (N // WINDOW) * D
    for k in range(0, tl.max(count, 0), TOGETHER):
        step = k + ahead[None, :]
        inside = step < count[:, None]
        at = first[:, None] + step
        values = tl.load(
            sums + at[:, :, None] * D + dims[None, None, :], mask=inside[:, :, None] & wide[None, None, :], other=0.0
        )
        acc += tl.sum(values, 1)
    at = replica * V * D + ids[:, None] * D + dims[None, :]
    tl.store(out + at, acc, mask=known[:, None] & wide[None, :])


def window(n: int) -> int:
    """W: near the square root of N, so that the windows of one id that is all tokens are as few as their rows."""
    return min(512, max(32, triton.next_power_of_2(int(n**0.5))))


def launch(grad: Tensor, tokens: Tensor, vocab_size: int, scale: Tensor | None = None) -> Tensor:
    """Both kernels: grad (R, N, D), of rows `scale` (R, N) times as large, tokens (R, N) or (1, N) -> (R, V, D)
    float32. Tokens outside of 0 .. V - 1 are left out."""
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
    factors, scaled = (grad, False) if scale is None else (scale.contiguous(), True)
    size, width = window(n), min(128, max(16, triton.next_power_of_2(d)))
    out = grad.new_empty(replicas, vocab_size, d, dtype=torch.float32)
    sums = grad.new_empty(replicas, n // size, d, dtype=torch.float32)
    each = n if ids.shape[0] > 1 else 0
    if n >= size:
        _windows_kernel[(n // size, replicas, triton.cdiv(d, width))](
            grad, factors, order, ids, sums, n, each, D=d, WINDOW=size, WIDTH=width, SCALED=scaled, num_warps=4
        )
    together = 1024 // width
    _segments_kernel[(triton.cdiv(vocab_size, together), replicas, triton.cdiv(d, width))](
        grad, factors, order, starts, sums, out, n, vocab_size, each, vocab_size + 1 if each else 0,
        D=d, WINDOW=size, IDS=together, TOGETHER=TOGETHER, WIDTH=width, SCALED=scaled, num_warps=4,
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
def forward(weight: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """weight (R, V, D), tokens (R, N) or (1, N) -> (R, N, D) in some dtype."""
    replicas, _, d = weight.shape
    n = tokens.shape[1]
    out = weight.new_empty(replicas, n, d, dtype=dtype)
    if out.numel():
        weight, tokens = weight if weight[0].is_contiguous() else weight.contiguous(), tokens.contiguous()
        width = triton.next_power_of_2(d)
        rows = max(1, 2048 // width)
        _rows_kernel[(triton.cdiv(n, rows), replicas)](
            weight, tokens, out, n, weight.stride(0), n if tokens.shape[0] > 1 else 0, D=d, ROWS=rows, WIDTH=width
        )
    return out


def _rows(weight: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """The same in PyTorch."""
    if tokens.shape[0] == 1:
        return weight[:, tokens.squeeze(0)].to(dtype)
    return weight.gather(1, tokens.unsqueeze(-1).expand(-1, -1, weight.shape[2])).to(dtype)


INLINED = {forward: _rows}


@forward.register_fake
def _(weight: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.new_empty(weight.shape[0], tokens.shape[1], weight.shape[2], dtype=dtype)


@torch.library.custom_op("zoology::embedding_gradient", mutates_args=())
def gradient(grad: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    """grad (R, N, D), tokens (R, N) or (1, N) -> (R, V, D) float32: each id's rows of `grad`, summed."""
    return launch(grad, tokens, vocab_size)


@gradient.register_fake
def _(grad: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    return grad.new_empty(grad.shape[0], vocab_size, grad.shape[2], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, torch.dtype], output: Tensor) -> None:
    weight, tokens, _ = inputs
    ctx.vocab_size, ctx.dtype = weight.shape[1], weight.dtype
    ctx.save_for_backward(tokens)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (tokens,) = ctx.saved_tensors
    return gradient(grad, tokens, ctx.vocab_size).to(ctx.dtype), None, None


forward.register_autograd(_backward, setup_context=_setup)


@forward.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], weight: Tensor, tokens: Tensor, dtype: torch.dtype
) -> tuple[Tensor, int]:
    weight = fold(weight, in_dims[0], info.batch_size)
    tokens = fold_shared(tokens, in_dims[1], info.batch_size, weight.shape[0] // info.batch_size)
    return unfold(forward(weight, tokens, dtype), info.batch_size), 0


@gradient.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], grad: Tensor, tokens: Tensor, vocab_size: int) -> tuple[Tensor, int]:
    grad = fold(grad, in_dims[0], info.batch_size)
    tokens = fold_shared(tokens, in_dims[1], info.batch_size, grad.shape[0] // info.batch_size)
    return unfold(gradient(grad, tokens, vocab_size), info.batch_size), 0
