"""A long convolution's kernel made by a small network from the position of each tap, as Hyena has it."""

import math

import torch
from torch import Tensor, nn

FAST_DECAY, SLOW_DECAY, TARGET = 0.3, 1.5, 1e-2
"""The window of the fastest (slowest) channel has fallen to TARGET at this share of l_max."""


class ImplicitFilter(nn.Module):
    """The kernel h_t = window(t) * network(position(t)), t < l_max, of each channel.

    The position of a tap is t / l_max and `bands` pairs of cos and -sin of 2 pi f t / l_max; the network has sines
    between its layers, of one frequency for each unit, which all layers share; the window is exp(-t / l_max * rate),
    the rates evenly spaced over the channels. Parameters are named as in safari's `HyenaFilter`.

    Source: Hyena, arXiv:2302.10866, section 3.3

    Args:
        channels: D.
        l_max: L, taps.
        width: of the network's inner layers.
        emb_dim: numbers that a position is given by, 1 + 2 bands: odd, at least 3.
        frequency: of the sines at the start.
        lr: learning rate of the network, before the schedule; None for the model's.
        lr_positions: learning rate of the positions, which are trained; None where they are not.
    """

    def __init__(
        self,
        channels: int,
        l_max: int,
        width: int,
        emb_dim: int,
        frequency: float,
        lr: float | None = None,
        lr_positions: float | None = None,
    ):
        super().__init__()
        self.pos_emb = _Positions(l_max, emb_dim, lr_positions)
        freq = nn.Parameter(torch.full((1, width), float(frequency)))
        self.implicit_filter = nn.Sequential(
            nn.Linear(emb_dim, width),
            _Sine(freq),
            nn.Linear(width, width),
            _Sine(freq),
            nn.Linear(width, width),
            _Sine(freq),
            nn.Linear(width, channels, bias=False),
        )
        self.modulation = _Window(channels)
        for parameter in self.implicit_filter.parameters() if lr is not None else ():
            parameter._optim = {"lr": lr, "weight_decay": 0.0}  # type: ignore[attr-defined]

    def filter(self, taps: int) -> Tensor:
        """The first taps of the kernel, at most l_max of them: (channels, taps)."""
        z, t = self.pos_emb.z[0, :taps], self.pos_emb.t[0, :taps]
        return (self.implicit_filter(z) * torch.exp(-t * self.modulation.deltas[0].abs())).mT


class _Sine(nn.Module):
    """sin(freq x), freq (1, width)."""

    def __init__(self, freq: nn.Parameter):
        super().__init__()
        self.freq = freq

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.freq * x)


class _Positions(nn.Module):
    """z (1, L, emb_dim), what the network is given, and t (1, L, 1) from 0 to 1."""

    def __init__(self, l_max: int, emb_dim: int, lr: float | None):
        super().__init__()
        t = torch.linspace(0, 1, l_max).unsqueeze(1)
        bands = (emb_dim - 1) // 2
        angle = 2 * math.pi / l_max * torch.arange(l_max).unsqueeze(1) * torch.linspace(1e-4, bands - 1, bands)
        z = torch.cat((t, angle.cos(), -angle.sin()), dim=1).unsqueeze(0)
        self.register_buffer("t", t.unsqueeze(0))
        if lr is None:
            self.register_buffer("z", z)
        else:
            self.z = nn.Parameter(z)
            self.z._optim = {"lr": lr, "weight_decay": 0.0}  # type: ignore[attr-defined]


class _Window(nn.Module):
    """deltas (1, 1, channels): the rates of decay, up to their sign."""

    def __init__(self, channels: int):
        super().__init__()
        slow, fast = (math.log(TARGET) / share for share in (SLOW_DECAY, FAST_DECAY))
        self.register_buffer("deltas", torch.linspace(slow, fast, channels).view(1, 1, -1))
