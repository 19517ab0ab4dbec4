"""The gradient of a sum and its LayerNorm in Triton, and the `torch.library` ops around it.

The forward pass is plain PyTorch, which torch.compile fuses with what stands before and after it. The backward pass
needs sums along rows, for the rows' gradient, and down columns, for that of weight and bias: left to the compiler these
are two passes over the same numbers. Here a program has a piece of the rows of one replica and makes both; the sums
down its columns are written apart, and added at the end. No atomics: the same numbers in every run.

Letters: R replicas, M rows of each, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels.pieces import add_pieces
from zoology.kernels.replicas import fold_all, unfold

TILE, LEAST_PIECE, PIECES, STAGES = 2048, 256, 256, 3
"""Elements that a program has at a time; rows of a piece, and pieces of a replica, before pieces grow; and tiles in
flight, without which a program waits for memory at each: on an H200 a sixth of its time."""


@triton.jit(do_not_specialize=["M", "piece"])
def _gradient_kernel(
    by_u, by_s, s, weight, by_x, sums, M, piece, eps,
    D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, STREAM: tl.constexpr, WIDE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    pieces = tl.cdiv(M, piece)
    replica = (tl.program_id(0) // pieces).to(tl.int64)
    first = tl.program_id(0) % pieces * piece
    stop = tl.minimum(first + piece, M)
    dims = tl.arange(0, WIDTH)
    wide = dims < D
    gain = tl.load(weight + replica * D + dims, mask=wide, other=0.0).to(WIDE)
    of_weight = tl.zeros([ROWS, WIDTH], WIDE)
    of_bias = tl.zeros([ROWS, WIDTH], WIDE)
    for start in tl.range(first, stop, ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, ROWS)
        there = (rows < stop)[:, None] & wide[None, :]
        at = (replica * M + rows)[:, None] * D + dims[None, :]
        x = tl.load(s + at, mask=there, other=0.0).to(WIDE)
        x = tl.where(wide[None, :], x - (tl.sum(x, 1) / D)[:, None], 0.0)
        rate = 1.0 / tl.sqrt(tl.sum(x * x, 1) / D + eps)
        x *= rate[:, None]
        g = tl.load(by_u + at, mask=there, other=0.0).to(WIDE)
        of_weight += g * x
        of_bias += g
        g *= gain[None, :]
        g = (g - (tl.sum(g, 1) / D)[:, None] - x * (tl.sum(g * x, 1) / D)[:, None]) * rate[:, None]
        if STREAM:
            g += tl.load(by_s + at, mask=there, other=0.0).to(WIDE)
        tl.store(by_x + at, g, mask=there)
    sums += tl.program_id(0).to(tl.int64) * 2 * D + dims
    tl.store(sums, tl.sum(of_weight, 0), mask=wide)
    tl.store(sums + D, tl.sum(of_bias, 0), mask=wide)


def launch(by_u: Tensor, by_s: Tensor | None, s: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `gradient`."""
    replicas, count, d = s.shape
    by_x, wide = s.new_empty(s.shape), torch.promote_types(s.dtype, torch.float32)
    if not s.numel():
        return by_x, s.new_zeros(replicas, 2, d, dtype=wide)
    width = triton.next_power_of_2(d)
    rows = max(1, TILE // width)
    piece = max(LEAST_PIECE, triton.cdiv(triton.cdiv(count, PIECES), rows) * rows)
    pieces = triton.cdiv(count, piece)
    sums = s.new_empty(replicas, pieces, 2, d, dtype=wide)
    by_s = None if by_s is None else by_s.contiguous()
    options = {"D": d, "ROWS": rows, "WIDTH": width, "WIDE": tl.float64 if wide == torch.float64 else tl.float32}
    _gradient_kernel[(replicas * pieces,)](
        by_u.contiguous(), s if by_s is None else by_s, s.contiguous(), weight.contiguous(), by_x, sums, count, piece,
        eps, STREAM=by_s is not None, STAGES=STAGES, num_warps=4, **options,
    )  # fmt: skip
    return by_x, add_pieces(sums, wide)


@torch.library.custom_op("zoology::add_norm", mutates_args=())
def forward(x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x and y (R, M, D), weight and bias (R, D) -> s and u. Where y is None s is a copy of x, which the compiler does
    without: so what else reads the stream has its gradient added in the same pass."""
    return _sum_and_norm(x, y, weight, bias, eps)


def _sum_and_norm(x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    s = x if y is None else x + y
    wide = s.to(torch.promote_types(s.dtype, torch.float32))
    u = F.layer_norm(wide, s.shape[-1:], eps=eps) * weight.unsqueeze(1) + bias.unsqueeze(1)
    return s.clone() if y is None else s, u.to(x.dtype)


INLINED = {forward: _sum_and_norm}


@forward.register_fake
def _(x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("zoology::add_norm_gradient", mutates_args=())
def gradient(by_u: Tensor, by_s: Tensor | None, s: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """For the gradients of u and, where something else reads it, s: that of x (and y), and those of weight and bias
    together, (R, 2, D) in float32 or better."""
    return launch(by_u, by_s, s, weight, eps)


@gradient.register_fake
def _(by_u: Tensor, by_s: Tensor | None, s: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    replicas, _, d = s.shape
    return s.new_empty(s.shape), s.new_empty(replicas, 2, d, dtype=torch.promote_types(s.dtype, torch.float32))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, y, weight, _, ctx.eps = inputs
    ctx.added = y is not None
    ctx.save_for_backward(x if y is None else output[0], weight)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, by_s: Tensor | None, by_u: Tensor | None) -> tuple[Tensor | None, ...]:
    s, weight = ctx.saved_tensors
    if by_u is None:
        return by_s, by_s if ctx.added else None, None, None, None
    by_x, others = gradient(by_u, by_s, s, weight, ctx.eps)
    return by_x, by_x if ctx.added else None, *others.to(weight.dtype).unbind(1), None


def _no_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("add_norm has no second derivative in Triton: use implementation='reference'")


forward.register_autograd(_backward, setup_context=_setup)
gradient.register_autograd(_no_second)


@forward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    s, u = forward(*fold_all(args[:4], in_dims[:4], info.batch_size), args[4])
    return (unfold(s, info.batch_size), unfold(u, info.batch_size)), (0, 0)


@gradient.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    found = gradient(*fold_all(args[:4], in_dims[:4], info.batch_size), args[4])
    return tuple(unfold(x, info.batch_size) for x in found), (0, 0)
