"""Softmax attention over short sequences in Triton: the `torch.library` ops around the kernels.

There are two: of queries, keys and values apart; and of the three in one tensor, whose gradient is one tensor too, so
that a projection that makes all three is one product in both directions.

Letters: B batch, T queries, S keys, H heads, d head width, w window, P seeds, each for B / P rows.
"""

from typing import Any

import torch
from torch import Tensor

from zoology.kernels.attention.checks import check
from zoology.kernels.attention.launch import launch_backward, launch_forward
from zoology.kernels.replicas import fold_all, unfold


@torch.library.custom_op("zoology::attention", mutates_args=())
def forward(q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, window: int, dropout: float) -> tuple[Tensor, Tensor]:
    """q (B, T, H, d), k and v (B, S, H, d); seed (P,) int64, or None without dropout.

    Returns:
        o (B, T, H, d), and log2 of the sum of exp(scores), (B, H, T) float32.
    """
    if q.numel():
        check(q, k, seed, dropout)
    return launch_forward(q, k, v, seed, window, dropout)


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, window: int, dropout: float) -> tuple[Tensor, Tensor]:
    batch, time, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, heads, time, dtype=torch.float32)


@torch.library.custom_op("zoology::attention_gradient", mutates_args=())
def gradient(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seed: Tensor | None,
    o: Tensor,
    log_sum: Tensor,
    window: int,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v for the gradient (B, T, H, d) of o."""
    if q.numel():
        check(q, k, seed, dropout)
    return launch_backward(grad, q, k, v, seed, o, log_sum, window, dropout)


@gradient.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window, ctx.dropout = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, by_log_sum: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    return *gradient(grad, *ctx.saved_tensors, ctx.window, ctx.dropout), None, None, None


def _no_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("attention has no second derivative in Triton: use implementation='reference'")


forward.register_autograd(_backward, setup_context=_setup)
gradient.register_autograd(_no_second)


@forward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    return tuple(unfold(x, size) for x in forward(*fold_all(args[:4], in_dims[:4], size), *args[4:])), (0, 0)


@gradient.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    return tuple(unfold(x, size) for x in gradient(*fold_all(args[:7], in_dims[:7], size), *args[7:])), (0, 0, 0)


@torch.library.custom_op("zoology::self_attention", mutates_args=())
def self_forward(qkv: Tensor, seed: Tensor | None, window: int, dropout: float) -> tuple[Tensor, Tensor]:
    """As `forward`, for q, k and v in one tensor (B, T, 3, H, d)."""
    q, k, v = qkv.unbind(2)
    if q.numel():
        check(q, k, seed, dropout)
    return launch_forward(q, k, v, seed, window, dropout)


@self_forward.register_fake
def _(qkv: Tensor, seed: Tensor | None, window: int, dropout: float) -> tuple[Tensor, Tensor]:
    batch, time, _, heads, d = qkv.shape
    return qkv.new_empty(batch, time, heads, d), qkv.new_empty(batch, heads, time, dtype=torch.float32)


@torch.library.custom_op("zoology::self_attention_gradient", mutates_args=())
def self_gradient(
    grad: Tensor, qkv: Tensor, seed: Tensor | None, o: Tensor, log_sum: Tensor, window: int, dropout: float
) -> Tensor:
    """As `gradient`, in one tensor (B, T, 3, H, d)."""
    q, k, v = qkv.unbind(2)
    if q.numel():
        check(q, k, seed, dropout)
    out = qkv.new_empty(qkv.shape)
    launch_backward(grad, q, k, v, seed, o, log_sum, window, dropout, out=out.unbind(2))
    return out


@self_gradient.register_fake
def _(grad: Tensor, qkv: Tensor, *others: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _self_backward(ctx: Any, grad: Tensor | None, by_log_sum: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 4
    return self_gradient(grad, *ctx.saved_tensors, ctx.window, ctx.dropout), None, None, None


self_forward.register_autograd(_self_backward, setup_context=_setup)
self_gradient.register_autograd(_no_second)


@self_forward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    return tuple(unfold(x, size) for x in self_forward(*fold_all(args[:2], in_dims[:2], size), *args[2:])), (0, 0)


@self_gradient.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    size = info.batch_size
    return unfold(self_gradient(*fold_all(args[:5], in_dims[:5], size), *args[5:]), size), 0
