"""Causal depthwise convolution in Triton, and the `torch.library` ops around it.

The kernels are in `programs`, which says how they go about it. Unlike the other ops', the replica axis is an axis of
the kernel: each replica has taps of its own.

Letters: R replicas, B batch, T time, D channels, k taps; j is how long ago the token was that a tap reads.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from zoology.kernels.pieces import add_pieces
from zoology.kernels.replicas import channels_dense, fold_all, register_limit, unfold
from zoology.kernels.short_conv.programs import (
    short_conv_gradient_kernel,
    short_conv_kernel,
    short_conv_step_kernel,
)

MAX_TAPS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Blocks(NamedTuple):
    """What a kernel is compiled for: segments and channels of a program, its warps, tokens that it reads at once, and
    registers of a thread at most.

    And `length`, the most tokens of a segment, for which it is not.
    """

    rows: int
    width: int
    warps: int
    length: int
    unroll: int
    registers: int | None


def forward_blocks(width: int) -> Blocks:
    """The forward kernel's blocks, for D channels: of 36 on an H200 the fastest, or near it, at each of three
    shapes, 90 to 94 % of a copy's speed."""
    return blocks_of(width, length=32, unroll=4)


def backward_blocks(width: int, taps: int, dtype: torch.dtype) -> Blocks:
    """The backward kernel's blocks, likewise of 54, 73 to 81 %. Longer segments, as the sums of all threads are added
    at their ends; and registers for four programs on a processor, where that spills little: with three, D = 1024 and 4
    taps take a second round of programs, and a fifth longer."""
    small = taps <= 4 and dtype != torch.float32
    return blocks_of(width, length=64, unroll=8, registers=128 if small else None)


def blocks_of(width: int, length: int, unroll: int, registers: int | None = None) -> Blocks:
    """Blocks of 4 elements a thread."""
    warps = 4
    width = min(256, max(16, triton.next_power_of_2(width)))
    return Blocks(4 * 32 * warps // width, width, warps, length, unroll, registers)


def constants(blocks: Blocks) -> dict[str, int]:
    words = {"ROWS": blocks.rows, "WIDTH": blocks.width, "UNROLL": blocks.unroll, "num_warps": blocks.warps}
    return words | register_limit(blocks.registers)


def cut(time: int, blocks: Blocks) -> tuple[int, int]:
    """How many segments a sequence has, all as long as each other but the last, and their length."""
    length = triton.cdiv(time, triton.cdiv(time, blocks.length))
    length = triton.cdiv(length, blocks.unroll) * blocks.unroll
    return triton.cdiv(time, length), length


def taps_dense(weight: Tensor) -> Tensor:
    """Taps (R, D, k), or biases (R, D), whose axes after the first lie dense."""
    return weight if weight[0].is_contiguous() else weight.contiguous()


def launch_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, blocks: Blocks | None = None
) -> Tensor:
    """The forward kernel, with `blocks` from the table or given; see `forward`."""
    replicas, batch, time, d = x.shape
    y = x.new_empty(x.shape)
    if not y.numel():
        return y
    x, weight = channels_dense(x), taps_dense(weight)
    bias = None if bias is None else taps_dense(bias)
    state = None if state is None or weight.shape[2] == 1 else state.contiguous()
    b = blocks or forward_blocks(d)
    segments, length = cut(time, b)
    tiles = triton.cdiv(batch * segments, b.rows)
    short_conv_kernel[(replicas * tiles * triton.cdiv(d, b.width),)](
        x, weight, x if bias is None else bias, x if state is None else state, y, batch, time, segments, length,
        *x.stride()[:3], weight.stride(0), 0 if bias is None else bias.stride(0),
        D=d, TAPS=weight.shape[2], STATE=state is not None, BIAS=bias is not None, **constants(b),
    )  # fmt: skip
    return y


def launch_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both kernels of the backward pass, with `blocks` from the table or given; see `gradient`."""
    replicas, batch, time, d = x.shape
    taps = weight.shape[2]
    by_x, by_state, by_taps = _like(x, weight, bias, state)
    if not x.numel():
        return by_x, by_state.zero_(), by_taps.zero_()
    grad, x, weight = channels_dense(grad), channels_dense(x), taps_dense(weight)
    state = None if state is None or taps == 1 else state.contiguous()
    b = blocks or backward_blocks(d, taps, x.dtype)
    segments, length = cut(time, b)
    tiles = triton.cdiv(batch * segments, b.rows)
    sums = by_taps.new_empty(replicas, tiles, *by_taps.shape[1:])
    short_conv_gradient_kernel[(replicas * tiles * triton.cdiv(d, b.width),)](
        grad, x, weight, x if state is None else state, by_x, by_state, sums, batch, time, segments,
        length, *grad.stride()[:3], *x.stride()[:3], weight.stride(0),
        D=d, TAPS=taps, STATE=state is not None, BIAS=bias is not None, **constants(b),
    )  # fmt: skip
    return by_x, by_state, add_pieces(sums, torch.float32)


def launch_step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """The step kernel; see `step`."""
    replicas, batch, d = x.shape
    taps = weight.shape[2]
    y, after = x.new_empty(x.shape), state.new_empty(state.shape, dtype=torch.promote_types(state.dtype, x.dtype))
    if y.numel():
        x, weight, state = x if x.stride(-1) == 1 else x.contiguous(), taps_dense(weight), state.contiguous()
        bias = None if bias is None else taps_dense(bias)
        width = min(128, max(16, triton.next_power_of_2(d)))
        rows = 1024 // width
        short_conv_step_kernel[(replicas * triton.cdiv(batch, rows) * triton.cdiv(d, width),)](
            x, weight, x if bias is None else bias, state, y, after, batch, *x.stride()[:2],
            weight.stride(0), 0 if bias is None else bias.stride(0),
            D=d, TAPS=taps, BIAS=bias is not None, ROWS=rows, WIDTH=width, num_warps=4,
        )  # fmt: skip
    return y, after


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels can take as many taps, and the dtypes; see `limits`."""
    return weight.shape[-1] <= MAX_TAPS and x.dtype in DTYPES and weight.dtype in DTYPES


def limits(x: Tensor, weight: Tensor, state: Tensor | None) -> None:
    """Refuse what the kernels cannot take.

    Raises:
        ValueError: naming the limit.
    """
    if weight.shape[-1] > MAX_TAPS:
        raise ValueError(f"k = {weight.shape[-1]}: the Triton kernel takes 1 to {MAX_TAPS}")
    for name, tensor in (("x", x), ("weight", weight), ("state", state)):
        if tensor is not None and tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}: the Triton kernel takes float32, bfloat16 and float16")
    if x.shape[-1] >= 2**24:
        raise ValueError(f"D = {x.shape[-1]}: the Triton kernel takes less than 2^24")
    if x.numel() // max(x.shape[-1], 1) >= 2**30:
        raise ValueError(f"B T = {x.numel() // x.shape[-1]}: the Triton kernel takes less than 2^30")


def _like(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> tuple[Tensor, ...]:
    """Empty gradients, with no element for what is None."""
    by_state = x.new_empty(*x.shape[:2], 0, x.shape[3]) if state is None else state.new_empty(state.shape)
    replicas, d, taps = weight.shape
    by_taps = x.new_empty(replicas, d, taps if bias is None else taps + 1, dtype=torch.float32)
    return x.new_empty(x.shape), by_state, by_taps


@torch.library.custom_op("zoology::short_conv", mutates_args=())
def forward(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> Tensor:
    """x (R, B, T, D), weight (R, D, k), bias (R, D), state (R, B, k - 1, D) -> (R, B, T, D)."""
    return launch_forward(x, weight, bias, state)


@forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("zoology::short_conv_gradient", mutates_args=())
def gradient(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and state, with no element for None, for the gradient (R, B, T, D) of y; and those of weight
    and, where there is one, bias behind it, together: (R, D, k) or (R, D, k + 1) in float32."""
    return launch_backward(grad, x, weight, bias, state)


@gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> tuple[Tensor, ...]:
    return _like(x, weight, bias, state)


@torch.library.custom_op("zoology::short_conv_step", mutates_args=())
def step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """x (R, B, D), weight (R, D, k), bias (R, D), state (R, B, k - 1, D) -> y (R, B, D), the state after it."""
    return launch_step(x, weight, bias, state)


@step.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape, dtype=torch.promote_types(state.dtype, x.dtype))


def _setup(ctx: Any, inputs: tuple[Tensor | None, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, state = ctx.saved_tensors
    by_x, by_state, by_taps = gradient(grad, x, weight, bias, state)
    return by_x, *_parted(by_taps, weight, bias), None if state is None else by_state


def _parted(by_taps: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight and bias, each in its dtype."""
    taps = weight.shape[2]
    by_weight = by_taps[..., :taps].to(weight.dtype)
    return by_weight, None if bias is None else by_taps[..., taps].to(bias.dtype)


def _step_backward(ctx: Any, grad: Tensor, by_after: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, state = ctx.saved_tensors
    by_x, by_state, by_taps = gradient(grad.unsqueeze(2), x.unsqueeze(2), weight, bias, state)
    by_x = by_x.squeeze(2)
    if by_after.shape[2]:  # the state moves on by one token
        by_x = by_x + by_after[:, :, -1].to(by_x.dtype)
        by_state = by_state + torch.cat((torch.zeros_like(by_after[:, :, :1]), by_after[:, :, :-1]), dim=2)
    return by_x, *_parted(by_taps, weight, bias), by_state.to(state.dtype)


def _no_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("short_conv has no second derivative in Triton: use implementation='reference'")


forward.register_autograd(_backward, setup_context=_setup)
step.register_autograd(_step_backward, setup_context=_setup)
gradient.register_autograd(_no_second)


@forward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Tensor, int]:
    return unfold(forward(*fold_all(tensors, in_dims, info.batch_size)), info.batch_size), 0


@gradient.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    out = gradient(*fold_all(tensors, in_dims, info.batch_size))
    return tuple(unfold(x, info.batch_size) for x in out), (0, 0, 0)


@step.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    out = step(*fold_all(tensors, in_dims, info.batch_size))
    return tuple(unfold(x, info.batch_size) for x in out), (0, 0)
