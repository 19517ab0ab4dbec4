"""A first-order recurrence along the first axis in blocks of about sqrt(T): for a CPU.

All blocks at once go through their own steps, then what each hands on is found from block to block, and put into all
blocks at once. Nothing is written in place, which a compiler under vmap refuses.
"""

import math

import torch
from torch import Tensor


def scan(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t, from an h before the first."""
    time, size = len(b), math.isqrt(len(b))
    whole = time - time % size
    decays, own = (x[:whole].unflatten(0, (-1, size)).unbind(1) for x in (a, b))
    states, since = [own[0]], [decays[0]]  # since: the product of the decays since the block began
    for decay, new in zip(decays[1:], own[1:], strict=True):
        states.append(torch.addcmul(new, decay, states[-1]))
        since.append(since[-1] * decay)
    before = [h]
    for last, fade in zip(states[-1], since[-1], strict=True):
        before.append(torch.addcmul(last, fade, before[-1]))
    carried = torch.stack(before[:-1])
    found = torch.stack([torch.addcmul(*each, carried) for each in zip(states, since, strict=True)], dim=1)
    rest = [before[-1]]
    for t in range(whole, time):
        rest.append(torch.addcmul(b[t], a[t], rest[-1]))
    return found.flatten(0, 1) if len(rest) == 1 else torch.cat((found.flatten(0, 1), torch.stack(rest[1:])))


def scan_back(a: Tensor, b: Tensor) -> Tensor:
    """g_t = b_t + a_{t+1} g_{t+1}, from g = 0 behind the end. Blocks are counted from there."""
    time, size = len(b), math.isqrt(len(b))
    rest = time % size
    decays, own = (x[rest:].unflatten(0, (-1, size)).unbind(1) for x in (a, b))
    # until: the product of the decays from there to the first token of the next block; the last has 0 from behind it.
    found, until = [own[-1]], [decays[0].roll(-1, 0)]
    for decay, new in zip(decays[:0:-1], own[-2::-1], strict=True):
        found.append(torch.addcmul(new, decay, found[-1]))
        until.append(until[-1] * decay)
    behind = [torch.zeros_like(b[0])]
    for i in range(len(found[-1]) - 1, 0, -1):
        behind.append(torch.addcmul(found[-1][i], until[-1][i], behind[-1]))
    carried = torch.stack(behind[::-1])
    g = torch.stack([torch.addcmul(*each, carried) for each in zip(found, until, strict=True)][::-1], dim=1)
    first = [g[0, 0]]
    for t in range(rest - 1, -1, -1):
        first.append(torch.addcmul(b[t], a[t + 1], first[-1]))
    return g.flatten(0, 1) if rest == 0 else torch.cat((torch.stack(first[:0:-1]), g.flatten(0, 1)))
