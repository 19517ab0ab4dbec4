"""What several mixers are built from: a short convolution with a state, norms, and unit-length keys.

Parameters are named and shaped as the public implementations have them (`conv1d.weight` (D, 1, k), `norm.weight` (D,)),
so that their weights load as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoology.kernels.linear import linear
from zoology.kernels.short_conv import short_conv, short_conv_step


def together(x: Tensor, *maps: nn.Linear) -> tuple[Tensor, ...]:
    """Linear maps without a bias of one x, (..., d_model) -> (..., out_features) of each.

    On a GPU sequences, (batch, time, d_model), go through one product: most of its time is reading x.
    """
    if not x.is_cuda or x.dim() < 3:
        return tuple(each(x) for each in maps)
    return linear(x, torch.cat([each.weight for each in maps])).split([each.out_features for each in maps], dim=-1)


class DepthwiseConv(nn.Module):
    """A causal depthwise convolution over k tokens, then SiLU where it is asked for.

    Its state, which the mixer that holds it keeps, is the last k - 1 inputs: (batch, k - 1, channels).

    weight: (channels, 1, kernel_size), bias: (channels,), drawn as those of an `nn.Conv1d`.
    """

    def __init__(self, channels: int, kernel_size: int, bias: bool = True, silu: bool = True):
        super().__init__()
        bound = kernel_size**-0.5
        self.silu = silu
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (batch, time, channels), state or None at the beginning -> y of the same shape, state."""
        y, state = short_conv(x, self.weight.squeeze(1), self.bias, state)
        return (F.silu(y) if self.silu else y), state

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token: x (batch, channels), state -> y (batch, channels), state."""
        y, state = short_conv_step(x, self.weight.squeeze(1), self.bias, state)
        return (F.silu(y) if self.silu else y), state


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, with a SiLU gate where one is given. Computed in float32 or better.

    Args:
        width: of the last axis.
        eps: added to the mean square.
        gate_first: whether the gate multiplies x before its root mean square is taken (Mamba-2) or the normalised
            output (GLA, Gated DeltaNet).
        affine: whether there is a weight.
        groups: how many equal parts of the last axis have a root mean square of their own.
    """

    def __init__(self, width: int, eps: float = 1e-5, gate_first: bool = False, affine: bool = True, groups: int = 1):
        super().__init__()
        self.eps, self.gate_first, self.groups = eps, gate_first, groups
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """x (..., width), gate of the same shape or None -> (..., width) in the dtype of x."""
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        factor = None if gate is None else F.silu(gate.to(y.dtype))
        if factor is not None and self.gate_first:
            y = y * factor
        parts = y.unflatten(-1, (self.groups, -1)) if self.groups > 1 else y
        parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + self.eps)
        y = parts.flatten(-2) if self.groups > 1 else parts
        if self.weight is not None:
            y = y * self.weight
        if factor is not None and not self.gate_first:
            y = y * factor
        return y.to(x.dtype)


def l2_normalise(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(sum x^2 + eps) over the last axis, computed in float32 or better, in the dtype of x."""
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    return (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + eps)).to(x.dtype)


def token_shift(x: Tensor, last: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What each token's predecessor was, as RWKV mixes it in: a convolution of two taps without weights.

    Args:
        x: (batch, time, d_model).
        last: (batch, d_model), the token before the piece, or None at the beginning, where 0 stands for it.

    Returns:
        (batch, time, d_model), each token's predecessor; (batch, d_model), the last token.
    """
    seen = F.pad(x, (0, 0, 1, 0)) if last is None else torch.cat((last.unsqueeze(1), x), dim=1)
    return seen[:, :-1], seen[:, -1].clone()  # a view would keep the whole piece alive
