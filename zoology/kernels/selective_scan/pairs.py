"""A first-order recurrence along the first axis by pairs: for a GPU.

Two neighbours make one step of a recurrence half as long, and so on: log2(T) times, each of which a compiler makes one
kernel. Of blocks, whose steps are a chain, it makes one kernel that starts the chain anew for each of its results.
"""

import torch
from torch import Tensor


def scan(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t, from an h before the first."""
    return _from_nothing(a, torch.cat((torch.addcmul(b[:1], a[:1], h), b[1:])))


def _from_nothing(a: Tensor, b: Tensor) -> Tensor:
    time = len(b)
    if time == 1:
        return b
    whole = time - time % 2
    a0, a1, b0, b1 = a[0:whole:2], a[1:whole:2], b[0:whole:2], b[1:whole:2]
    odd = _from_nothing(a0 * a1, torch.addcmul(b1, a1, b0))
    h = odd.new_empty(b.shape)
    h[0] = b[0]
    h[1::2] = odd
    h[2::2] = torch.addcmul(b[2::2], a[2::2], odd[: (time - 1) // 2])
    return h


def scan_back(a: Tensor, b: Tensor) -> Tensor:
    """g_t = b_t + a_{t+1} g_{t+1}, from g = 0 behind the end."""
    return _to_nothing(a[1:], b)


def _to_nothing(a: Tensor, b: Tensor) -> Tensor:
    """g_t = b_t + a_t g_{t+1}, and g = b at the last time, to which no a belongs."""
    time, odd = len(b), len(b) % 2
    if time == 1:
        return b
    a0, a1, b0, b1 = a[odd::2], a[odd + 1 :: 2], b[odd::2], b[odd + 1 :: 2]
    first = _to_nothing(a0[:-1] * a1, torch.addcmul(b0, a0, b1))
    g = first.new_empty(b.shape)
    g[odd::2] = first
    g[odd + 1 : -1 : 2] = torch.addcmul(b1[:-1], a1, first[1:])
    g[-1] = b[-1]
    if odd:
        g[0] = torch.addcmul(b[0], a[0], g[1])
    return g
