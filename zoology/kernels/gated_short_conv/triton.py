"""The gated short convolution in Triton, and the `torch.library` ops around it.

The product with the gate's weight is cuBLAS's, the rest one kernel forward and one backward, see `programs`. In the
backward pass the product's gradient is added to what the kernel wrote, in place.

Letters: R replicas, B batch, T time, D channels, k taps.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from zoology.kernels.gated_short_conv.programs import gated_short_conv_gradient_kernel, gated_short_conv_kernel
from zoology.kernels.linear import weight_gradient
from zoology.kernels.pieces import add_pieces
from zoology.kernels.replicas import channels_dense, fold_all, unfold
from zoology.kernels.short_conv.triton import Blocks, blocks_of, constants, cut, limits, taps_dense


def gated_short_conv(x: Tensor, gate_weight: Tensor, gate_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same function as `zoology.kernels.gated_short_conv`.

    Raises:
        ValueError: a shape or dtype that the kernel cannot take.
    """
    limits(x, weight, None)
    autocast = torch.is_autocast_enabled(x.device.type)
    cast = gate_weight.detach().to(torch.get_autocast_dtype(x.device.type) if autocast else x.dtype)
    return forward(*(a.unsqueeze(0) for a in (x, gate_weight, cast, gate_bias, weight, bias)))[0].squeeze(0)


def forward_blocks(width: int) -> Blocks:
    """The forward kernel's blocks, for D channels: of twelve on an H200, at D = 64, the fastest: 98 % of a copy's
    speed."""
    b = blocks_of(width, length=32, unroll=4)
    return b._replace(rows=max(1, b.rows // 2))


def backward_blocks(width: int, taps: int, dtype: torch.dtype) -> Blocks:
    """The backward kernel's blocks, likewise of eighteen: 91 %."""
    small = taps <= 4 and dtype != torch.float32
    return blocks_of(width, length=64, unroll=4, registers=128 if small else None)


def launch_forward(
    x: Tensor, z: Tensor, gate_bias: Tensor, weight: Tensor, bias: Tensor, blocks: Blocks | None = None
) -> Tensor:
    """The forward kernel, with `blocks` from the table or given: x (R, B, T, D), z (R, B T, D) -> y as x."""
    replicas, batch, time, d = x.shape
    y = x.new_empty(x.shape)
    if not y.numel():
        return y
    x, weight, bias, gate_bias = channels_dense(x), *(taps_dense(a) for a in (weight, bias, gate_bias))
    b = blocks or forward_blocks(d)
    segments, length = cut(time, b)
    tiles = triton.cdiv(batch * segments, b.rows)
    gated_short_conv_kernel[(replicas * tiles * triton.cdiv(d, b.width),)](
        x, z, weight, bias, gate_bias, y, batch, time, segments, length,
        *x.stride()[:3], weight.stride(0), bias.stride(0), gate_bias.stride(0),
        D=d, TAPS=weight.shape[2], **constants(b),
    )  # fmt: skip
    return y


def launch_backward(
    grad: Tensor, x: Tensor, z: Tensor, gate_bias: Tensor, weight: Tensor, bias: Tensor, blocks: Blocks | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Both kernels of the backward pass: by_x without what it has through z, by_z, and the gradients of weight, bias
    and gate_bias together, (R, D, k + 2) in float32."""
    replicas, batch, time, d = x.shape
    taps = weight.shape[2]
    by_x, by_z = x.new_empty(x.shape), z.new_empty(z.shape)
    if not x.numel():
        return by_x, by_z, x.new_zeros(replicas, d, taps + 2, dtype=torch.float32)
    b = blocks or backward_blocks(d, taps, x.dtype)
    segments, length = cut(time, b)
    tiles = triton.cdiv(batch * segments, b.rows)
    sums = x.new_empty(replicas, tiles, d, taps + 2, dtype=torch.float32)
    grad, x = channels_dense(grad), channels_dense(x)
    weight, bias, gate_bias = (taps_dense(a) for a in (weight, bias, gate_bias))
    gated_short_conv_gradient_kernel[(replicas * tiles * triton.cdiv(d, b.width),)](
        grad, x, z, weight, bias, gate_bias, by_x, by_z, sums, batch, time, segments, length,
        *grad.stride()[:3], *x.stride()[:3], weight.stride(0), bias.stride(0), gate_bias.stride(0),
        D=d, TAPS=taps, **constants(b),
    )  # fmt: skip
    return by_x, by_z, add_pieces(sums, torch.float32)


@torch.library.custom_op("zoology::gated_short_conv", mutates_args=())
def forward(
    x: Tensor, gate_weight: Tensor, cast: Tensor, gate_bias: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """x (R, B, T, D), gate_weight (R, D, D), gate_bias (R, D), weight (R, D, k), bias (R, D) -> y (R, B, T, D), and z
    (R, B T, D), the product with the gate's weight. `cast` is that weight, without a gradient, in the dtype of z."""
    z = torch.bmm(x.to(cast.dtype).flatten(1, 2), cast.mT)
    return launch_forward(x, z, gate_bias, weight, bias), z


@forward.register_fake
def _(
    x: Tensor, gate_weight: Tensor, cast: Tensor, gate_bias: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), cast.new_empty(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])


@torch.library.custom_op("zoology::gated_short_conv_gradient", mutates_args=())
def gradient(
    grad: Tensor,
    x: Tensor,
    z: Tensor,
    cast: Tensor,
    gate_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and, in `dtype`, of gate_weight for that of y (R, B, T, D); and those of weight, bias and
    gate_bias together, (R, D, k + 2) in float32."""
    by_x, by_z, by_taps = launch_backward(grad, x, z, gate_bias, weight, bias)
    rows = by_x.flatten(1, 2)
    if z.dtype == x.dtype:
        rows.baddbmm_(by_z, cast)
    else:
        rows += torch.bmm(by_z, cast)
    return by_x, weight_gradient(by_z, x.to(z.dtype).flatten(1, 2), dtype), by_taps


@gradient.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    z: Tensor,
    cast: Tensor,
    gate_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    by_taps = x.new_empty(*weight.shape[:2], weight.shape[2] + 2, dtype=torch.float32)
    return x.new_empty(x.shape), cast.new_empty(cast.shape, dtype=dtype), by_taps


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gate_weight, cast, gate_bias, weight, bias = inputs
    ctx.dtype = gate_weight.dtype
    ctx.save_for_backward(x, output[1], cast, gate_bias, weight, bias)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, by_z: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    x, z, cast, gate_bias, weight, bias = ctx.saved_tensors
    by_x, by_gate_weight, by_taps = gradient(grad, x, z, cast, gate_bias, weight, bias, ctx.dtype)
    by_weight, by_bias, by_gate_bias = by_taps[..., :-2], by_taps[..., -2], by_taps[..., -1]
    by_gate_bias = by_gate_bias.to(gate_bias.dtype)
    return by_x, by_gate_weight, None, by_gate_bias, by_weight.to(weight.dtype), by_bias.to(bias.dtype)


def _no_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("gated_short_conv has no second derivative in Triton: use implementation='reference'")


forward.register_autograd(_backward, setup_context=_setup)
gradient.register_autograd(_no_second)


@forward.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    y, z = forward(*fold_all(tensors, in_dims, info.batch_size))
    return (unfold(y, info.batch_size), unfold(z, info.batch_size)), (0, 0)


@gradient.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
    found = gradient(*fold_all(args[:7], in_dims[:7], info.batch_size), args[7])
    return tuple(unfold(x, info.batch_size) for x in found), (0, 0, 0)
