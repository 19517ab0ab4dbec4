"""What kernels with a decay share: decays between the tokens of a chunk, and sums that decay from chunk to chunk.

A decay is given by its logarithm, at most 0. Only differences that are at most 0 are ever raised, so nothing overflows,
however strong the decay; what lies above the diagonal is put out before it is raised, not after, as 0 times infinity
would come back as NaN in the backward pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16
"""Sums that one triangular matrix joins. More of them are joined block by block."""


def cumulative(log_decay: Tensor) -> Tensor:
    """Sums of log decays over the last axis, in float64: differences of them are as exact as the decays themselves,
    where a strong decay in the past would swallow a weak one in float32."""
    return log_decay.double().cumsum(-1)


def pair_decays(total: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(total_t - total_s) where s <= t, and 0 elsewhere: (..., C) of `cumulative` -> (..., C, C) in `dtype`.

    Differences are taken in `dtype`, of what a number and its rounding error are there: as exact as in float64, in
    half the time. The gradient needs the number alone.
    """
    near = total.to(dtype)
    later = torch.ones(2 * total.shape[-1:], dtype=torch.bool, device=total.device).triu(1)
    error = (total.detach() - near.detach()).to(dtype)
    error = (error.unsqueeze(-1) - error.unsqueeze(-2)).masked_fill(later, -torch.inf)
    return (near.unsqueeze(-1) - near.unsqueeze(-2) + error).exp()


def decayed_sums(x: Tensor, log_decay: Tensor) -> Tensor:
    """S_n = exp(log_decay_n) S_{n-1} + x_n for every n: x (..., N, X), log_decay (..., N) -> (..., N, X).

    Before the first S is 0. Leading axes of `log_decay` may be 1 or missing. Blocks of sums are joined by one
    triangular matrix each, and the blocks' last sums in the same way: work grows as N, depth as log N. Autocast does
    not reach these sums: they are the state.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _sums(x, log_decay)


def _sums(x: Tensor, log_decay: Tensor) -> Tensor:
    number = x.shape[-2]
    if number <= 1:
        return x
    if number <= 2 * BLOCK:
        return pair_decays(cumulative(log_decay), x.dtype) @ x
    missing = -number % BLOCK
    x = F.pad(x, (0, 0, 0, missing)).unflatten(-2, (-1, BLOCK))
    total = cumulative(F.pad(log_decay, (0, missing)).unflatten(-1, (-1, BLOCK)))
    inside = pair_decays(total, x.dtype) @ x
    ends = _sums(inside[..., -1, :], total[..., -1])
    before = F.pad(ends[..., :-1, :], (0, 0, 1, 0))
    sums = inside + total.exp().to(x.dtype).unsqueeze(-1) * before.unsqueeze(-2)
    return sums.flatten(-3, -2)[..., :number, :]
