"""The gradient of rows that were taken of sequences, in Triton, and the `torch.library` ops around it.

Each program has a sequence, or some times of a long one, and writes the gradient there, block by block: the product of
a matrix that has a 1 where a time is a label's position, and of what came for the labels, so that it is 0 where no
label is, exactly what came where one is, and a sum in float32 where several are. What came is read once where a block
holds it. No atomics: the same numbers in every run.

Letters: R replicas, Q lists of positions (R, or 1 that all share), B sequences, T time, N positions, D width.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels.replicas import fold, fold_shared, unfold
from zoology.kernels.take_rows import reference


class Blocks(NamedTuple):
    """What a program has of a sequence: times of a block, and how many blocks; labels and width at most; and warps."""

    times: int
    count: int
    labels: int
    width: int
    warps: int


BLOCKS = Blocks(64, 4, 64, 128, 4)
WIDE_BLOCKS = Blocks(32, 4, 32, 64, 4)
"""Of float32, whose products take more registers."""


@triton.jit(do_not_specialize=["B", "T", "N"])
def spread_kernel(
    grad, positions, out, B, T, N, stride_p,
    D: tl.constexpr, TIMES: tl.constexpr, COUNT: tl.constexpr, LABELS: tl.constexpr, WIDTH: tl.constexpr,
    ALL: tl.constexpr,
):  # fmt: skip
    """ALL: one block holds all labels."""
    parts = tl.cdiv(T, TIMES * COUNT)
    row = (tl.program_id(0) // parts).to(tl.int64)
    begin = tl.program_id(0) % parts * (TIMES * COUNT)
    dims = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    wide = (dims < D)[None, :]
    label = tl.arange(0, LABELS)
    positions += row // B * stride_p + row % B * N + label
    grad += (row * N + label)[:, None] * D + dims[None, :]
    out += row * T * D + dims[None, :]
    at = tl.load(positions, mask=label < N, other=-1).to(tl.int32)
    g = tl.load(grad, mask=(label < N)[:, None] & wide, other=0.0)
    for first in range(begin, tl.minimum(begin + TIMES * COUNT, T), TIMES):
        times = first + tl.arange(0, TIMES)
        acc = tl.zeros([TIMES, WIDTH], tl.float32)
        if ALL:
            acc = tl.dot((times[:, None] == at[None, :]).to(g.dtype), g, acc, input_precision="ieee")
        else:
            for n in range(0, N, LABELS):
                near = tl.load(positions + n, mask=label + n < N, other=-1).to(tl.int32)
                h = tl.load(grad + n * D, mask=(label + n < N)[:, None] & wide, other=0.0)
                acc = tl.dot((times[:, None] == near[None, :]).to(h.dtype), h, acc, input_precision="ieee")
        tl.store(out + times[:, None] * D, acc, mask=(times < T)[:, None] & wide)


def launch(grad: Tensor, positions: Tensor, time: int, blocks: Blocks | None = None) -> Tensor:
    """The kernel, with `blocks` of its dtype or given; see `gradient`."""
    replicas, batch, labels, d = grad.shape
    out = grad.new_empty(replicas, batch, time, d)
    if out.numel():
        b = blocks or (WIDE_BLOCKS if grad.dtype == torch.float32 else BLOCKS)
        width = min(b.width, max(16, triton.next_power_of_2(d)))
        most = min(b.labels, max(16, triton.next_power_of_2(labels)))
        parts = triton.cdiv(time, b.times * b.count)
        spread_kernel[(replicas * batch * parts, triton.cdiv(d, width))](
            grad.contiguous(), positions.contiguous(), out, batch, time, labels,
            batch * labels if positions.shape[0] > 1 else 0,
            D=d, TIMES=b.times, COUNT=b.count, LABELS=most, WIDTH=width, ALL=labels <= most, num_warps=b.warps,
        )  # fmt: skip
    return out


@torch.library.custom_op("zoology::take_rows", mutates_args=())
def forward(x: Tensor, positions: Tensor) -> Tensor:
    """x (R, B, T, D), positions (Q, B, N) -> (R, B, N, D)."""
    return reference.take_rows(x, positions)


INLINED = {forward: reference.take_rows}


@forward.register_fake
def _(x: Tensor, positions: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], positions.shape[2], x.shape[3])


@torch.library.custom_op("zoology::take_rows_gradient", mutates_args=())
def gradient(grad: Tensor, positions: Tensor, time: int) -> Tensor:
    """The gradient of x, (R, B, T, D), for that of the rows taken (R, B, N, D), positions (Q, B, N)."""
    return launch(grad, positions, time)


@gradient.register_fake
def _(grad: Tensor, positions: Tensor, time: int) -> Tensor:
    return grad.new_empty(*grad.shape[:2], time, grad.shape[3])


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, positions = inputs
    ctx.time = x.shape[2]
    ctx.save_for_backward(positions)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return gradient(grad, *ctx.saved_tensors, ctx.time), None


def _no_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("take_rows has no second derivative in Triton: use implementation='reference'")


forward.register_autograd(_backward, setup_context=_setup)
gradient.register_autograd(_no_second)


@forward.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, positions: Tensor) -> tuple[Tensor, int]:
    x = fold(x, in_dims[0], info.batch_size)
    positions = fold_shared(positions, in_dims[1], info.batch_size, x.shape[0] // info.batch_size)
    return unfold(forward(x, positions), info.batch_size), 0


@gradient.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], grad: Tensor, positions: Tensor, time: int) -> tuple[Tensor, int]:
    grad = fold(grad, in_dims[0], info.batch_size)
    positions = fold_shared(positions, in_dims[1], info.batch_size, grad.shape[0] // info.batch_size)
    return unfold(gradient(grad, positions, time), info.batch_size), 0
