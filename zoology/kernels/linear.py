"""A linear map of many rows, laid out for a GPU that trains many small models: `torch.library` ops.

The gradient of a weight is a product over all rows, B T of them, whose result is small: one block of a GPU would walk
them all for each replica, and the others idle. Cut in pieces, all of it works; the sum over the pieces is in the dtype
of the weight. torch.compile sees one product of three axes, whatever `torch.vmap` is around it; of the pieces it would
make a copy, so that it does not see them.

Letters: R replicas, M rows of each, K width of x, N width of y.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoology.kernels.replicas import fold_all, unfold

PIECES, LEAST_ROWS = 16, 128
"""Into how many pieces rows are cut, and the rows that a piece must have to be worth it."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, x (..., K), weight (N, K), bias (N,) -> (..., N), for many rows in any dtype of the weight.

    Under autocast x is rounded to its dtype, as the weight is in any case. Gradients are taken once, not twice.
    """
    if x.numel() < PIECES * LEAST_ROWS * weight.shape[1]:
        return F.linear(x, weight, bias)
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    y = forward(x.to(dtype).reshape(1, -1, weight.shape[1]), weight.unsqueeze(0))
    y = y.reshape(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias.to(dtype)


@torch.library.custom_op("zoology::linear", mutates_args=())
def forward(x: Tensor, weight: Tensor) -> Tensor:
    """x (R, M, K), weight (R, N, K) -> (R, M, N) in the dtype of x."""
    return _product(x, weight)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(x, weight.to(x.dtype).mT)


@torch.library.custom_op("zoology::linear_gradient", mutates_args=())
def gradient(grad: Tensor, x: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradient of x for that of y (R, M, N), all in one dtype; and that of the weight, in its own `dtype`."""
    return torch.bmm(grad, weight), weight_gradient(grad, x, dtype)


def weight_gradient(grad: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of a weight, (R, N, K) in some dtype, for x (R, M, K) and the gradient of y (R, M, N)."""
    replicas, rows, width = x.shape
    pieces = math.gcd(rows, PIECES) if rows >= PIECES * LEAST_ROWS else 1
    a, b = (t.reshape(replicas * pieces, rows // pieces, t.shape[2]) for t in (grad, x))
    return torch.bmm(a.mT, b).view(replicas, pieces, grad.shape[2], width).sum(1, dtype=dtype)


INLINED = {forward: _product}


@forward.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], weight.shape[1])


@gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape, dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    return gradient(grad, x, weight.to(x.dtype), weight.dtype)


def _no_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("linear has no second derivative: use torch.nn.functional.linear")


forward.register_autograd(_backward, setup_context=_setup)
gradient.register_autograd(_no_second)


@forward.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
    return unfold(forward(*fold_all(tensors, in_dims, info.batch_size)), info.batch_size), 0


@gradient.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    found = gradient(*fold_all(args[:3], in_dims[:3], info.batch_size), args[3])
    return tuple(unfold(x, info.batch_size) for x in found), (0, 0)
