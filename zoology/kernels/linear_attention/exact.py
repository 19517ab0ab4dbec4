"""Linear attention and its gradients as matrices in float64, for the check that the compiler made right code.

Written out, not differentiated: inside a `torch.library` op autograd is off.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Exact(NamedTuple):
    """Outputs and gradients, in the layout of the op; `dg` is None where there is no decay."""

    o: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dg: Tensor | None


def exact(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, taylor: bool, normalise: bool, eps: float
) -> Exact:
    """do, v (B, T, H, dv), q, k (B, T, H, f), log_decay (B, T, H) or None."""
    do, q, k, v = (x.double().transpose(1, 2) for x in (do, q, k, v))
    scale = q.shape[-1] ** -0.5 if taylor else 1.0
    s = q @ k.mT * scale
    w, slope = (1 + s + s * s / 2, (1 + s) * scale) if taylor else (s, torch.ones_like(s))
    d = torch.ones_like(s).tril()
    if log_decay is not None:
        total = log_decay.double().transpose(1, 2).cumsum(-1)
        d = (total.unsqueeze(-1) - total.unsqueeze(-2)).clamp(max=0).exp().tril()
    share = 1 / ((w * d).sum(-1, keepdim=True) + eps) if normalise else torch.ones_like(s[..., :1])
    o = (w * d * share) @ v
    dw = do @ v.mT
    if normalise:
        dw = dw - (do * o).sum(-1, keepdim=True)
    dw = dw * share * d
    pairs = (dw * w).tril(-1)
    across = pairs.sum(-1) - pairs.sum(-2)
    gradients = ((dw * slope) @ k, (dw * slope).mT @ q, (w * d * share).mT @ do)
    dg = None if log_decay is None else across.flip(-1).cumsum(-1).flip(-1).transpose(1, 2)
    return Exact(*(x.transpose(1, 2) for x in (o, *gradients)), dg)
