"""RWKV-4's WKV in PyTorch: exact, differentiable, without a loop over time, on any device.

The sums are held as (n e^p, d e^p), so that no exponential is taken of a number above 0. p cancels in y, and is
treated as a constant in the backward pass: gradients go through n and d alone, and are exact.

Letters: B batch, T time, D channels, w rate of decay, u bonus of the current token, p the running maximum of exponents.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EMPTY = -1e38
"""The exponent of a sum over nothing."""
BLOCK = 16
"""Tokens that are scanned by doubling; blocks are scanned in the same way. The fastest on one CPU thread."""


class WKVState(NamedTuple):
    """What WKV keeps: 3 D elements for each sequence, (B, D) each, in float32 or better.

    numerator, denominator: the sums over the past, divided by e^exponent.
    exponent: p, the largest exponent in them.
    """

    numerator: Tensor
    denominator: Tensor
    exponent: Tensor


def empty_state(batch: int, like: Tensor) -> WKVState:
    """The state before the first token, as many channels as `like` (D,) has, on its device."""
    zeros = torch.zeros(batch, like.shape[-1], device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    return WKVState(zeros, zeros.clone(), zeros + EMPTY)


def wkv(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: WKVState | None = None) -> tuple[Tensor, WKVState]:
    """The same function as `zoology.kernels.wkv`."""
    check(k, v, w, u, dims=3)
    wide = torch.promote_types(k.dtype, torch.float32)
    k, value, w, u = (x.to(wide) for x in (k, v, w, u))
    before = empty_state(k.shape[0], w) if state is None else state
    fixed = k.detach()
    weight = (k - fixed).exp()  # 1, with the gradient of e^k / e^p
    sums = torch.stack(
        (
            torch.cat((before.numerator.to(wide).unsqueeze(1), weight * value), dim=1),
            torch.cat((before.denominator.to(wide).unsqueeze(1), weight), dim=1),
        )
    )
    sums, p = _scan(sums, torch.cat((before.exponent.to(wide).unsqueeze(1), fixed), dim=1), w)
    after = WKVState(sums[0, :, -1].clone(), sums[1, :, -1].clone(), p[:, -1].clone())
    return _read(sums[:, :, :-1], p[:, :-1], k, value, u).to(v.dtype), after


def wkv_step(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
    """One token of `wkv`: k, v (B, D), state -> y (B, D), state.

    Raises:
        ValueError: as `wkv`.
    """
    check(k, v, w, u, dims=2)
    wide = torch.promote_types(k.dtype, torch.float32)
    k, value, w, u = (x.to(wide) for x in (k, v, w, u))
    sums, p = torch.stack((state.numerator, state.denominator)), state.exponent
    y = _read(sums, p, k, value, u)
    fixed = k.detach()
    weight = (k - fixed).exp()
    sums, p = _join(sums, p, w, torch.stack((weight * value, weight)), fixed)
    return y.to(v.dtype), WKVState(sums[0], sums[1], p)


def _read(sums: Tensor, p: Tensor, k: Tensor, v: Tensor, u: Tensor) -> Tensor:
    """y of tokens k, v (..., D), for the sums (2, ..., D) and their exponents (..., D) before each."""
    own = u + k
    top = torch.maximum(p, own.detach())
    past, now = sums * (p - top).exp(), (own - top).exp()
    return (past[0] + now * v) / (past[1] + now)


def _join(early: Tensor, p_early: Tensor, fall: Tensor, late: Tensor, p_late: Tensor) -> tuple[Tensor, Tensor]:
    """Two neighbouring sums as one, at the time of the later: sums (2, ..., D), exponents (..., D).

    fall: by how much the earlier one's exponent falls until then, w times the tokens between.
    """
    p = torch.maximum(p_early - fall.detach(), p_late)
    return early * (p_early - p - fall).exp() + late * (p_late - p).exp(), p


def _scan(sums: Tensor, p: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of each token alone -> sums up to each token: (2, ..., T, D), exponents (..., T, D).

    Tokens are scanned within blocks, all blocks at once, by doubling; then the blocks' totals in the same way. On a GPU
    a block is one sum over all pairs, which torch.compile makes without writing any of them down; of the rounds of
    doubling it makes one expression that it cannot compile in minutes.
    """
    time = p.shape[-2]
    within = _pairs if p.is_cuda else _doubling
    if time <= BLOCK:
        return within(sums, p, w)
    short = -time % BLOCK
    sums = F.pad(sums, (0, 0, 0, short)).unflatten(-2, (-1, BLOCK))
    p = F.pad(p, (0, 0, 0, short)).unflatten(-2, (-1, BLOCK))
    sums, p = within(sums, p, w)
    totals, p_totals = _scan(sums[..., :-1, -1, :], p[..., :-1, -1, :], w * BLOCK)
    early = F.pad(totals, (0, 0, 1, 0)).unsqueeze(-2)
    p_early = F.pad(p_totals, (0, 0, 1, 0), value=EMPTY).unsqueeze(-2)
    fall = torch.arange(1, BLOCK + 1, device=w.device, dtype=w.dtype).unsqueeze(-1) * w
    sums, p = _join(early, p_early, fall, sums, p)
    return sums.flatten(-3, -2)[..., :time, :], p.flatten(-3, -2)[..., :time, :]


def _doubling(sums: Tensor, p: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`_scan` in log2(T) rounds: after each, a token's sum reaches twice as far back."""
    step, time = 1, p.shape[-2]
    while step < time:
        joined, p_joined = _join(
            sums[..., :-step, :], p[..., :-step, :], step * w, sums[..., step:, :], p[..., step:, :]
        )
        sums = torch.cat((sums[..., :step, :], joined), dim=-2)
        p = torch.cat((p[..., :step, :], p_joined), dim=-2)
        step *= 2
    return sums, p


def _pairs(sums: Tensor, p: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`_scan`, each token's sum at once."""
    token = torch.arange(p.shape[-2], device=p.device)
    ago = (token.unsqueeze(-1) - token).unsqueeze(-1)  # (T, T, 1)
    exponents = torch.where(ago >= 0, p.unsqueeze(-3) - ago * w, -torch.inf)
    top = exponents.detach().amax(-2)
    weights = (exponents - top.unsqueeze(-2)).exp()
    return (weights * sums.unsqueeze(-3)).sum(-2), top


def check(k: Tensor, v: Tensor, w: Tensor, u: Tensor, dims: int) -> None:
    if k.dim() != dims or k.shape != v.shape or w.shape != k.shape[-1:] or u.shape != w.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (k, v, w, u))
        layout = "(B, T, D)" if dims == 3 else "(B, D)"
        raise ValueError(f"k, v, w, u have the shapes {shapes}: must be {layout}, {layout}, (D,), (D,)")
