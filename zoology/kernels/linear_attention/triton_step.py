"""One token of linear attention in Triton, and the `torch.library` op around it.

The state is nearly all that is moved: a program reads its part of it once, decays it, adds the token, writes it, and
reads the output off it on the way. Features are made where they are used, from q and k: feature n of `taylor_features`
is x_i x_{i + s}, with s and i the quotient and remainder of n by f, beyond the constant and x itself.

Letters: B batch, H heads, f feature_dim (width of q and k), F width of phi, dv width of v.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels.replicas import fold_all, unfold

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HALF_ROOT = tl.constexpr(0.5**0.5)


class Blocks(NamedTuple):
    """What the kernel is compiled for: features and values of a tile, warps in a program."""

    features: int
    values: int
    warps: int


def step_blocks(states: int, dv: int) -> Blocks:
    """The kernel's blocks, for B H states with dv values: few states are cut along their values, to have work for all
    of a GPU."""
    values = min(64 if states >= 256 else 16, max(16, triton.next_power_of_2(dv)))
    return Blocks(2048 // values, values, 4)


@triton.jit
def _features(x, n, WIDE: tl.constexpr, F: tl.constexpr, TAYLOR: tl.constexpr):
    """The features that n numbers, in float32, of x at a pointer to (f,); 0 beyond F."""
    there = n < F
    if not TAYLOR:
        return tl.load(x + n, mask=there, other=0.0).to(tl.float32)
    SCALE: tl.constexpr = WIDE**-0.25
    shift, i = (n - 1) // WIDE - 1, (n - 1) % WIDE
    one = tl.load(x + i, mask=there & (n > 0), other=0.0).to(tl.float32) * SCALE
    pair = there & (shift >= 0)
    two = tl.load(x + (i + shift) % WIDE, mask=pair, other=0.0).to(tl.float32) * SCALE
    value = tl.where(shift < 0, one, tl.where(shift == 0, one * one * HALF_ROOT, one * two))
    return tl.where(there, tl.where(n == 0, 1.0, value), 0.0)


@triton.jit(do_not_specialize=["H", "eps"])
def _step_kernel(
    q, k, v, kv, normaliser, log_decay, o, kv_after, normaliser_after, H, eps,
    q_b, q_h, k_b, k_h, v_b, v_h, g_b, g_h,
    WIDE: tl.constexpr, F: tl.constexpr, DV: tl.constexpr, TAYLOR: tl.constexpr, NORMALISE: tl.constexpr,
    DECAY: tl.constexpr, FEATURES: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (DV + VALUES - 1) // VALUES
    part = tl.program_id(0) % PARTS
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    batch, head = row // H, row % H
    dims = part * VALUES + tl.arange(0, VALUES)
    wide = dims < DV
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    value = tl.load(v + batch * v_b + head * v_h + dims, mask=wide, other=0.0).to(tl.float32)
    kept = 1.0
    if DECAY:
        kept = tl.exp(tl.load(log_decay + batch * g_b + head * g_h).to(tl.float32))
    kv += row * F * DV
    kv_after += row * F * DV
    acc = tl.zeros([FEATURES, VALUES], tl.float32)
    total = tl.zeros([FEATURES], tl.float32)
    for first in tl.static_range(0, F, FEATURES):
        n = first + tl.arange(0, FEATURES)
        at, there = n[:, None] * DV + dims[None, :], (n < F)[:, None] & wide[None, :]
        s = tl.load(kv + at, mask=there, other=0.0).to(tl.float32)
        phi_q, phi_k = _features(q, n, WIDE, F, TAYLOR), _features(k, n, WIDE, F, TAYLOR)
        s = s * kept + phi_k[:, None] * value[None, :]
        acc += phi_q[:, None] * s
        tl.store(kv_after + at, s, mask=there)
        if NORMALISE:
            z = tl.load(normaliser + row * F + n, mask=n < F, other=0.0).to(tl.float32) * kept + phi_k
            total += phi_q * z
            tl.store(normaliser_after + row * F + n, z, mask=n + part * F < F)  # the first part alone
    out = tl.sum(acc, 0)
    if NORMALISE:
        out = out / (tl.sum(total, 0) + eps)
    tl.store(o + row * DV + dims, out, mask=wide)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor,
    normaliser: Tensor | None,
    log_decay: Tensor | None,
    taylor: bool,
    eps: float,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel, with `blocks` from the table or given; see `step`."""
    o, kv_after, normaliser_after = _like(v, kv, normaliser)
    if kv.numel():
        q, k, v, kv = _rows(q), _rows(k), _rows(v), kv.contiguous()
        normaliser = None if normaliser is None else normaliser.contiguous()
        batch, heads, dv = v.shape
        b = blocks or step_blocks(batch * heads, dv)
        strides = [s for x in (q, k, v, log_decay) for s in ((0, 0) if x is None else x.stride()[:2])]
        _step_kernel[(batch * heads * triton.cdiv(dv, b.values),)](
            q, k, v, kv, kv if normaliser is None else normaliser, kv if log_decay is None else log_decay,
            o, kv_after, normaliser_after, heads, eps, *strides,
            WIDE=q.shape[2], F=kv.shape[2], DV=dv, TAYLOR=taylor, NORMALISE=normaliser is not None,
            DECAY=log_decay is not None, FEATURES=b.features, VALUES=b.values, num_warps=b.warps,
        )  # fmt: skip
    return o, kv_after, normaliser_after


def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernel can take their dtypes; see `limits`."""
    return all(x is None or x.dtype in DTYPES for x in tensors)


def limits(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, normaliser: Tensor, log_decay: Tensor | None) -> None:
    """Refuse what the kernel cannot take.

    Raises:
        ValueError: naming the limit.
    """
    named = {"q": q, "k": k, "v": v, "kv": kv, "normaliser": normaliser, "log_decay": log_decay}
    for name, x in named.items():
        if x is not None and not takes(x):
            raise ValueError(f"{name} is {x.dtype}: the Triton kernel takes float32, bfloat16 and float16")
    if kv.shape[-1] * kv.shape[-2] >= 2**24 or q.shape[-1] < 1:
        raise ValueError(
            f"f = {q.shape[-1]}, F dv = {kv.shape[-1] * kv.shape[-2]}: the Triton kernel takes f >= 1, F dv < 2^24"
        )
    if kv.shape[0] * kv.shape[1] * kv.shape[-1] >= 2**30:
        raise ValueError(f"B H dv = {kv.shape[0] * kv.shape[1] * kv.shape[-1]}: the Triton kernel takes less than 2^30")


def _like(v: Tensor, kv: Tensor, normaliser: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    after = kv.new_empty(*kv.shape[:2], 0) if normaliser is None else normaliser.new_empty(normaliser.shape)
    return v.new_empty(v.shape), kv.new_empty(kv.shape), after


@torch.library.custom_op("zoology::linear_attention_step", mutates_args=())
def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor,
    normaliser: Tensor | None,
    log_decay: Tensor | None,
    taylor: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k (B, H, f), v (B, H, dv), kv (B, H, F, dv), normaliser (B, H, F) or None, log_decay (B, H) or None.

    Returns:
        o (B, H, dv); kv and the normaliser after the token, the latter with no element where it is None.
    """
    return launch(q, k, v, kv, normaliser, log_decay, taylor, eps)


@step.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor,
    normaliser: Tensor | None,
    log_decay: Tensor | None,
    taylor: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(v, kv, normaliser)


def _no_gradient(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError("linear_attention_step has no gradient in Triton: use implementation='reference'")


step.register_autograd(_no_gradient)


@step.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    out = step(*fold_all(args[:6], in_dims[:6], info.batch_size), *args[6:])
    return tuple(unfold(x, info.batch_size) for x in out), (0, 0, 0)
