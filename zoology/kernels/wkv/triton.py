"""WKV in Triton, and the `torch.library` ops around it.

The kernels are in `programs`, which says how they go about it.

Letters: R replicas, B batch, T time, D channels; n, d, p the state: numerator, denominator and exponent.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from zoology.kernels.replicas import channels_dense, fold_all, unfold
from zoology.kernels.wkv.programs import wkv_gradient_kernel, wkv_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = 8
"""Tokens that are read at once; in the backward pass those whose states are in the registers at once."""


def takes(k: Tensor, v: Tensor, w: Tensor) -> bool:
    """Whether the kernels can take the dtypes; see `limits`."""
    return all(t.dtype in DTYPES for t in (k, v, w))


def limits(k: Tensor, v: Tensor, w: Tensor) -> None:
    """Refuse what the kernels cannot take.

    Raises:
        ValueError: naming the limit.
    """
    for name, tensor in (("k", k), ("v", v), ("w", w)):
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}: the Triton kernel takes float32, bfloat16 and float16")


def _words(d: int) -> dict[str, int]:
    """Blocks of one channel of a sequence for a thread."""
    width = min(128, triton.next_power_of_2(d))
    return {"ROWS": 128 // width, "WIDTH": width, "CHUNK": CHUNK, "num_warps": 4}


def _like(k: Tensor, v: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Empty outputs; see `forward`."""
    replicas, batch, time, d = k.shape
    after = [k.new_empty(replicas, batch, d, dtype=torch.float32) for _ in range(3)]
    kept = k.new_empty(replicas, batch, -(-time // CHUNK) if keep else 0, 3, d, dtype=torch.float32)
    return v.new_empty(v.shape), after[0], after[1], after[2], kept


def _gradients(k: Tensor, v: Tensor, p: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Empty gradients; see `gradient`."""
    replicas, batch, _, d = k.shape
    by_n, by_d = (k.new_empty(replicas, batch, 0 if p is None else d, dtype=torch.float32) for _ in range(2))
    return k.new_empty(k.shape), v.new_empty(v.shape), by_n.new_empty(replicas, 2, d), by_n, by_d


@torch.library.custom_op("zoology::wkv", mutates_args=())
def forward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, n: Tensor | None, d: Tensor | None, p: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """k, v (R, B, T, D), w, u (R, D), n, d, p (R, B, D).

    Returns:
        y as v; n, d and p after the piece, (R, B, D) float32; and before each chunk, (R, B, chunks, 3, D), or no chunk
        unless `keep`.
    """
    replicas, batch, time, width = k.shape
    y, *after, kept = _like(k, v, keep)
    if not y.numel():
        return y, *(t.zero_() for t in after), kept
    k, v = channels_dense(k), channels_dense(v)
    state = [k if t is None else t.contiguous() for t in (n, d, p)]
    words = _words(width)
    tiles = triton.cdiv(batch, words["ROWS"]) * triton.cdiv(width, words["WIDTH"])
    wkv_kernel[(replicas * tiles,)](
        k, v, w.contiguous(), u.contiguous(), *state, y, *after, kept, batch, time, width,
        *k.stride()[:3], *v.stride()[:3], STATE=n is not None, KEEP=keep, **words,
    )  # fmt: skip
    return y, *after, kept


@forward.register_fake
def _(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, n: Tensor | None, d: Tensor | None, p: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _like(k, v, keep)


@torch.library.custom_op("zoology::wkv_gradient", mutates_args=())
def gradient(
    grad: Tensor,
    by_after_n: Tensor | None,
    by_after_d: Tensor | None,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    p: Tensor | None,
    after_p: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of k and v; those of w and u together, (R, 2, D) float32; and those of n and d, with no element
    where there is no state; for those of y, and of n and d after the piece."""
    replicas, batch, time, d = k.shape
    by_k, by_v, by_rates, by_n, by_d = _gradients(k, v, p)
    if not k.numel():
        return by_k, by_v, by_rates.zero_(), by_n.zero_(), by_d.zero_()
    grad, k, v = (channels_dense(t) for t in (grad, k, v))
    after = by_after_n is not None or by_after_d is not None
    pulls = [t.contiguous() if t is not None else torch.zeros_like(after_p) for t in (by_after_n, by_after_d)]
    words = _words(d)
    tiles = triton.cdiv(batch, words["ROWS"])
    sums = by_rates.new_empty(replicas, tiles, 2, d)
    wkv_gradient_kernel[(replicas * tiles * triton.cdiv(d, words["WIDTH"]),)](
        grad, *pulls, k, v, w.contiguous(), u.contiguous(), after_p if p is None else p.contiguous(), after_p, kept,
        by_k, by_v, sums, by_n, by_d, batch, time, d, *grad.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        STATE=p is not None, AFTER=after, **words,
    )  # fmt: skip
    return by_k, by_v, sums.sum(1), by_n, by_d


@gradient.register_fake
def _(
    grad: Tensor,
    by_after_n: Tensor | None,
    by_after_d: Tensor | None,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    p: Tensor | None,
    after_p: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _gradients(k, v, p)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.keep = inputs
    ctx.save_for_backward(*tensors, output[3], output[4])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
    by_after_n, by_after_d, _, by_kept = others  # p cancels: it is a constant
    if by_kept is not None:
        raise RuntimeError("wkv has no second derivative in Triton: use implementation='reference'")
    k, v, w, u, n, d, p, after_p, kept = ctx.saved_tensors
    if grad is None and by_after_n is None and by_after_d is None:
        return (None,) * 8
    if not ctx.keep:
        kept = forward(k, v, w, u, n, d, p, True)[4]
    grad = v.new_zeros(v.shape) if grad is None else grad
    by_k, by_v, by_rates, by_n, by_d = gradient(grad, by_after_n, by_after_d, k, v, w, u, p, after_p, kept)
    by_w, by_u = by_rates[:, 0].to(w.dtype), by_rates[:, 1].to(u.dtype)
    if n is None or d is None:
        return by_k, by_v, by_w, by_u, None, None, None, None
    return by_k, by_v, by_w, by_u, by_n.to(n.dtype), by_d.to(d.dtype), None, None


def _no_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("wkv has no second derivative in Triton: use implementation='reference'")


forward.register_autograd(_backward, setup_context=_setup)
gradient.register_autograd(_no_second)


@forward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    found = forward(*fold_all(args[:7], in_dims[:7], info.batch_size), args[7])
    return tuple(unfold(x, info.batch_size) for x in found), (0,) * 5


@gradient.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    found = gradient(*fold_all(tensors, in_dims, info.batch_size))
    return tuple(unfold(x, info.batch_size) for x in found), (0,) * 5
