"""Mamba: a diagonal state-space model whose step size, input and output maps depend on the token."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.architectures.parts import DepthwiseConv
from zoology.kernels.selective_scan import selective_scan, selective_scan_step

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 0.1, 1e-4
"""The step sizes at the start are log-uniform between the first two."""


class MambaState(NamedTuple):
    """E N + (W - 1) E elements for each sequence.

    conv_inputs: (batch, W - 1, E), the last inputs of the convolution.
    ssm: (batch, E, N), the state h, in float32 or better.
    """

    conv_inputs: Tensor
    ssm: Tensor


@register_mixer("mamba")
class Mamba(Mixer):
    """Mamba, the selective state-space model, as mamba-ssm's `Mamba` and transformers' `MambaMixer` have it.

        x, z = in_proj(u),  x = SiLU(conv1d(x)),  (dt, B, C) = x_proj(x),  delta = softplus(dt_proj(dt))
        h = exp(delta A) * h + (delta x) B,  A = -exp(A_log);  y = C h + D * x;  out_proj(y * SiLU(z))

    Weights of either load as they are. The block here has the papers' recall recipe around it: a short-convolution
    layer before, no further norm.

    Source: Mamba, arXiv:2312.00752, equation 2 and figure 3

    Letters: u the layer's input, E = expand x d_model, N d_state, W d_conv; delta the step size, of which dt_rank
    numbers are made first; h the state, E x N.

    Raises:
        InputError: dt_rank is below 0.
    """

    class Config(MixerConfig):
        d_state: int = dial(16, sweep=(4, 8, 16), help="numbers kept for each of the expand x d_model channels")
        expand: int = Field(2, ge=1, description="channels inside, as a multiple of d_model")
        d_conv: int = Field(4, ge=1, description="taps of the convolution, the current token included")
        dt_rank: int = Field(0, ge=0, description="rank of the map to the step sizes; 0 for d_model / 16, rounded up")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.d_inner = config.expand * d_model
        self.d_state, self.d_conv = config.d_state, config.d_conv
        self.dt_rank = config.dt_rank or math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = DepthwiseConv(self.d_inner, config.d_conv)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, config.d_state + 1).log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.empty(self.d_inner).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp().clamp(min=DT_FLOOR)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.dt_proj.weight._no_reinit = self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]
        self.A_log._no_weight_decay = self.D._no_weight_decay = True  # type: ignore[attr-defined]

    def init_state(self, batch_size: int) -> MambaState:
        wide = torch.promote_types(self.A_log.dtype, torch.float32)
        return MambaState(
            self.zeros(batch_size, self.d_conv - 1, self.d_inner),
            self.zeros(batch_size, self.d_inner, self.d_state, dtype=wide),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, MambaState(None, None))[0]  # type: ignore[arg-type]

    def prefill(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        return self._run(x, state)

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, inputs = self.conv1d.step(u, state.conv_inputs)
        y, h = selective_scan_step(u, *self._parameters_of(u), self.D, state.ssm)
        return self.out_proj(y * F.silu(z)), MambaState(inputs, h)

    def _run(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, inputs = self.conv1d(u, state.conv_inputs)
        y, h = selective_scan(u, *self._parameters_of(u), self.D, state=state.ssm)
        return self.out_proj(y * F.silu(z)), MambaState(inputs, h)

    def _parameters_of(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The scan's delta (..., E), A (E, N), B and C (..., N) at the inputs u (..., E)."""
        dt, B, C = self.x_proj(u).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        wide = torch.promote_types(u.dtype, torch.float32)
        delta = F.softplus(F.linear(dt, self.dt_proj.weight).to(wide) + self.dt_proj.bias)
        return delta, -torch.exp(self.A_log.to(wide)), B, C
