"""The gradient of rows that were taken of sequences, in Triton, and the `torch.library` ops around it.

Each program has some times of one sequence, and writes the gradient there: its product with a matrix that has a 1 where
a label's position is a time, so that it is 0 where no label is, exactly what came where one is, and a sum in float32
where several are. No atomics: the same numbers in every run.

Letters: R replicas, Q lists of positions (R, or 1 that all share), B sequences, T time, N positions, D width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels.replicas import fold, fold_shared, unfold
from zoology.kernels.take_rows import reference

BLOCK, WIDE_BLOCK = (64, 64, 128), (32, 32, 64)
"""What a program has of a sequence: times, and labels and width at most. Products in float32 take more registers."""


@triton.jit(do_not_specialize=["B", "T", "N"])
def spread_kernel(
    grad, positions, out, B, T, N, stride_p,
    D: tl.constexpr, TIMES: tl.constexpr, LABELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(T, TIMES)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    times = tl.program_id(0) % blocks * TIMES + tl.arange(0, TIMES)
    dims = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    wide = (dims < D)[:, None]
    positions += row // B * stride_p + row % B * N
    acc = tl.zeros([WIDTH, TIMES], tl.float32)
    for first in range(0, N, LABELS):
        label = first + tl.arange(0, LABELS)
        at = tl.load(positions + label, mask=label < N, other=-1).to(tl.int32)
        g = tl.load(grad + (row * N + label)[None, :] * D + dims[:, None], mask=wide & (label < N)[None, :], other=0.0)
        hot = (at[:, None] == times[None, :]).to(g.dtype)
        acc = tl.dot(g, hot, acc, input_precision="ieee")
    tl.store(out + (row * T + times)[None, :] * D + dims[:, None], acc, mask=wide & (times < T)[None, :])


def launch(grad: Tensor, positions: Tensor, time: int) -> Tensor:
    """The kernel; see `gradient`."""
    replicas, batch, labels, d = grad.shape
    out = grad.new_empty(replicas, batch, time, d)
    if out.numel():
        times, most, widest = WIDE_BLOCK if grad.dtype == torch.float32 else BLOCK
        width = min(widest, max(16, triton.next_power_of_2(d)))
        spread_kernel[(replicas * batch * triton.cdiv(time, times), triton.cdiv(d, width))](
            grad.contiguous(), positions.contiguous(), out, batch, time, labels,
            batch * labels if positions.shape[0] > 1 else 0,
            D=d, TIMES=times, LABELS=min(most, max(16, triton.next_power_of_2(labels))), WIDTH=width, num_stages=2,
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
