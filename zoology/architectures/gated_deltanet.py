"""Gated DeltaNet: the delta rule with a decay, so that the memory is corrected key by key and cleared at once."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.base import register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.architectures.deltanet import (
    DeltaMixer,
    DeltaNetState,
    convolutions,
    heads_of,
    project,
    short_conv_silu,
    short_conv_silu_step,
    whole_width,
)
from zoology.architectures.parts import DepthwiseConv, RMSNorm
from zoology.kernels.delta_rule import delta_rule, delta_rule_step

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 0.1, 1e-4
A_MAX = 16.0


@register_mixer("gated-deltanet")
class GatedDeltaNet(DeltaMixer):
    """Gated DeltaNet, as the layer `GatedDeltaNet` of flash-linear-attention, whose weights load as they are.

        S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,    o_t = S_t q_t,
        beta_t = sigmoid(W_b x_t),    alpha_t = exp(-exp(A_log) softplus(W_a x_t + dt_bias))

    q, k and v are linear maps of x, each through a causal depthwise convolution and SiLU; q and k then have length 1 in
    each head, and q is scaled by d_k^(-1/2). The output of each head is normalised (RMSNorm), multiplied by
    SiLU(W_g x_t), and goes through `o_proj`.

    Its state is S, H d_k d_v elements in float32 or better, and the W - 1 inputs of the convolutions,
    (W - 1)(2 H d_k + H d_v). Kept here is the transpose of the paper's S.

    The published layer has H d_k = 3/4 d_model and heads of 256; here head_dim and num_heads are free, as its widths
    make little sense below 1024. The published model has an MLP after each layer, and no convolution layer before it.

    Source: Gated DeltaNet, arXiv:2412.06464; negative eigenvalues: arXiv:2411.12537

    Letters: H num_heads, d_k head_dim, d_v = expand_v head_dim, W conv_size, alpha_t the decay (A and dt as in
    Mamba-2), beta_t the share of the error that is corrected.

    Raises:
        InputError: expand_v head_dim is no whole number.
    """

    class Config(MixerConfig):
        head_dim: int = dial(8, sweep=(4, 8, 16), help="width of one head's queries and keys")
        num_heads: int = Field(2, ge=1, description="heads")
        expand_v: float = Field(2.0, gt=0, description="width of one head's values / head_dim")
        use_short_conv: bool = Field(True, description="short convolutions on q, k and v")
        conv_size: int = Field(4, ge=1, description="taps of the short convolutions, the current token included")
        allow_neg_eigval: bool = Field(False, description="beta in (0, 2), so that a key's value can change its sign")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        heads = config.num_heads
        self.num_heads = heads
        self.conv_size = config.conv_size if config.use_short_conv else 1
        self.beta_scale = 2.0 if config.allow_neg_eigval else 1.0
        self.head_k_dim = config.head_dim
        self.head_v_dim = whole_width(
            f"expand_v * head_dim = {config.expand_v} * {config.head_dim}", config.expand_v * config.head_dim
        )
        key_dim, value_dim = heads * self.head_k_dim, heads * self.head_v_dim
        self.q_proj = nn.Linear(d_model, key_dim, bias=False)
        self.k_proj = nn.Linear(d_model, key_dim, bias=False)
        self.v_proj = nn.Linear(d_model, value_dim, bias=False)
        self.a_proj = nn.Linear(d_model, heads, bias=False)
        self.b_proj = nn.Linear(d_model, heads, bias=False)
        self.A_log = nn.Parameter((A_MAX * (1 - torch.rand(heads))).log())  # A in (0, 16]
        dt = torch.exp(torch.rand(heads) * (math.log(DT_MAX) - math.log(DT_MIN)) + math.log(DT_MIN)).clamp(min=DT_FLOOR)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # the softplus of this is dt
        for parameter in (self.A_log, self.dt_bias):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        if config.use_short_conv:
            self.q_conv1d = DepthwiseConv(key_dim, config.conv_size, bias=False)
            self.k_conv1d = DepthwiseConv(key_dim, config.conv_size, bias=False)
            self.v_conv1d = DepthwiseConv(value_dim, config.conv_size, bias=False)
        self.g_proj = nn.Linear(d_model, value_dim, bias=False)
        self.o_norm = RMSNorm(self.head_v_dim)
        self.o_proj = nn.Linear(value_dim, d_model, bias=False)

    def _run(self, x: Tensor, memory: Tensor | None, inputs: Tensor | None) -> tuple[Tensor, DeltaNetState]:
        qkv, gate, beta, log_decay = self._project(x)
        qkv, inputs = short_conv_silu(qkv, convolutions(self), inputs)
        o, memory = delta_rule(*heads_of(qkv, self.num_heads, self.head_k_dim), beta, log_decay, state=memory)
        return self.o_proj(self.o_norm(o, gate).flatten(2)), DeltaNetState(memory, inputs)

    def step(self, x: Tensor, state: DeltaNetState) -> tuple[Tensor, DeltaNetState]:
        qkv, gate, beta, log_decay = self._project(x)
        qkv, inputs = short_conv_silu_step(qkv, convolutions(self), state.conv_inputs)
        q, k, v = heads_of(qkv, self.num_heads, self.head_k_dim)
        o, memory = delta_rule_step(q, k, v, beta, log_decay, state.memory)
        return self.o_proj(self.o_norm(o, gate).flatten(1)), DeltaNetState(memory, inputs)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(..., d_model) -> q, k and v side by side before their convolutions, the gate (..., H, d_v), beta and
        log alpha (..., H), the last two in float32 or better."""
        heads, values = self.num_heads, self.num_heads * self.head_v_dim
        maps = (self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.b_proj, self.a_proj)
        widths = (2 * heads * self.head_k_dim + values, values, heads, heads)
        qkv, gate, b, a = project(x, maps).split_with_sizes(widths, dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        log_decay = -self.A_log.to(wide).exp() * F.softplus(a.to(wide) + self.dt_bias)
        return qkv, gate.unflatten(-1, (heads, -1)), b.to(wide).sigmoid() * self.beta_scale, log_decay
