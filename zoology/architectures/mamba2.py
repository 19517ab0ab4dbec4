"""Mamba-2: a selective state-space model whose heads each forget at one rate, which the token chooses."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.architectures.parts import DepthwiseConv, RMSNorm
from zoology.kernels.linear_attention import LinearAttentionState, linear_attention, linear_attention_step
from zoology.registry import InputError

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 0.1, 1e-4
"""Between the first two dt starts, at equal chances for equal ratios; the last is the least that it may be."""

A_MIN, A_MAX = 1.0, 16.0
"""Between these -A starts."""


class Mamba2State(NamedTuple):
    """The transpose of the paper's h, (batch, heads, N, P), and the last W - 1 inputs of the convolution."""

    memory: Tensor
    conv_inputs: Tensor


@register_mixer("mamba2")
class Mamba2(Mixer):
    """Mamba-2 (structured state-space duality), as `Mamba2` of mamba-ssm, whose weights load as they are.

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,    y_t = h_t C_t + D x_t,    dt_t = softplus(. + dt_bias)

    One linear map, `in_proj`, gives z, x, B, C and dt. x, B and C go through one causal depthwise convolution and SiLU.
    A = -exp(A_log) and dt are numbers of a head; B and C are shared by the heads of a group. y SiLU(z) is normalised
    (RMSNorm over each group), and goes through `out_proj`. In the terms of linear attention C is the query, B the key,
    dt x the value, and exp(dt A) the decay.

    Its state is h, E N elements in float32 or better, and the W - 1 inputs of the convolution, (W - 1)(E + 2 G N).

    Published heads are 64 wide, and N is 64 to 256. The published model has nothing but such layers, with RMSNorm
    between them: no MLP, and no convolution layer before.

    Source: Mamba-2, arXiv:2405.21060

    Letters: E = expand d_model (d_inner), P headdim, E / P heads, N d_state, G ngroups, W d_conv.

    Raises:
        InputError: expand d_model is not divisible by headdim, or the number of heads not by ngroups.
    """

    class Config(MixerConfig):
        d_state: int = dial(16, sweep=(8, 16, 32), help="width of B and C: elements of the state for each channel")
        headdim: int = Field(16, ge=1, description="channels in a head; must divide expand * d_model")
        expand: int = Field(2, ge=1, description="inner channels / d_model")
        ngroups: int = Field(1, ge=1, description="groups of heads that share B and C")
        d_conv: int = Field(4, ge=1, description="taps of the convolution, the current token included")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.d_inner = config.expand * d_model
        self.d_state, self.ngroups, self.d_conv = config.d_state, config.ngroups, config.d_conv
        if self.d_inner % config.headdim:
            allowed = ", ".join(str(n) for n in range(1, self.d_inner + 1) if self.d_inner % n == 0)
            raise InputError(
                f"expand * d_model = {self.d_inner} is not divisible by headdim = {config.headdim}: "
                f"headdim must be one of {allowed}"
            )
        self.nheads = self.d_inner // config.headdim
        if self.nheads % config.ngroups:
            allowed = ", ".join(str(n) for n in range(1, self.nheads + 1) if self.nheads % n == 0)
            raise InputError(
                f"{self.nheads} heads do not share ngroups = {config.ngroups} groups: ngroups must be one of {allowed}"
            )
        conv_dim = self.d_inner + 2 * config.ngroups * config.d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + conv_dim + self.nheads, bias=False)
        self.conv1d = DepthwiseConv(conv_dim, config.d_conv)
        dt = torch.exp(torch.rand(self.nheads) * (math.log(DT_MAX) - math.log(DT_MIN)) + math.log(DT_MIN))
        dt = dt.clamp(min=DT_FLOOR)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # the softplus of this is dt
        self.A_log = nn.Parameter(torch.empty(self.nheads).uniform_(A_MIN, A_MAX).log())
        self.D = nn.Parameter(torch.ones(self.nheads))
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.norm = RMSNorm(self.d_inner, gate_first=True, groups=config.ngroups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def init_state(self, batch_size: int) -> Mamba2State:
        wide = torch.promote_types(self.out_proj.weight.dtype, torch.float32)
        memory = self.zeros(batch_size, self.nheads, self.d_state, self.d_inner // self.nheads, dtype=wide)
        return Mamba2State(memory, self.zeros(batch_size, self.d_conv - 1, self.conv1d.weight.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        z, xbc, dt = self._project(x)
        inner, q, k, v, log_decay = self._discretise(self.conv1d(xbc)[0], dt)
        o, _ = linear_attention(q, k, v, normalise=False, log_decay=log_decay)
        return self._out(o, inner, z)

    def prefill(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        z, xbc, dt = self._project(x)
        xbc, inputs = self.conv1d(xbc, state.conv_inputs)
        inner, q, k, v, log_decay = self._discretise(xbc, dt)
        before = LinearAttentionState.of_sum(state.memory)
        o, after = linear_attention(q, k, v, normalise=False, log_decay=log_decay, state=before, output_state=True)
        assert after is not None
        return self._out(o, inner, z), Mamba2State(after.kv, inputs)

    def step(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        z, xbc, dt = self._project(x)
        xbc, inputs = self.conv1d.step(xbc, state.conv_inputs)
        inner, q, k, v, log_decay = self._discretise(xbc, dt)
        before = LinearAttentionState.of_sum(state.memory)
        o, after = linear_attention_step(q, k, v, before, normalise=False, log_decay=log_decay)
        return self._out(o, inner, z), Mamba2State(after.kv, inputs)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., d_model) -> z (..., E); x, B and C before their convolution; dt (..., heads) before its softplus."""
        widths = (self.d_inner, self.conv1d.weight.shape[0], self.nheads)
        return self.in_proj(x).split_with_sizes(widths, dim=-1)

    def _discretise(self, xbc: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x (..., heads, P), and linear attention's terms: C and B (..., heads, N), dt x, and dt A (..., heads)."""
        shared = self.ngroups * self.d_state
        inner, b, c = xbc.split_with_sizes((self.d_inner, shared, shared), dim=-1)
        inner = inner.unflatten(-1, (self.nheads, -1))
        b, c = (
            y.unflatten(-1, (self.ngroups, 1, -1))
            .expand(*y.shape[:-1], -1, self.nheads // self.ngroups, -1)
            .flatten(-3, -2)
            for y in (b, c)
        )
        wide = torch.promote_types(dt.dtype, torch.float32)
        dt = F.softplus(dt.to(wide) + self.dt_bias)
        return inner, c, b, inner * dt.unsqueeze(-1), -self.A_log.to(wide).exp() * dt

    def _out(self, o: Tensor, inner: Tensor, z: Tensor) -> Tensor:
        y = o + self.D.unsqueeze(-1) * inner
        return self.out_proj(self.norm(y.flatten(-2).to(z.dtype), z))
