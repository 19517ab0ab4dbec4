"""GLA: linear attention that forgets each channel of its keys at its own rate, which the token chooses."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.attention import head_dim
from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.architectures.parts import DepthwiseConv, RMSNorm
from zoology.architectures.retnet import expanded
from zoology.kernels.gated_linear_attention import gated_linear_attention, gated_linear_attention_step


class GLAState(NamedTuple):
    """S (batch, heads, d_k, d_v), and the last W - 1 inputs of each short convolution, where there are any."""

    memory: Tensor
    conv_inputs: tuple[Tensor, ...]


@register_mixer("gla")
class GLA(Mixer):
    """Gated linear attention, as the layer `GatedLinearAttention` of flash-linear-attention, whose weights load as they
    are.

        S_t = diag(alpha_t) S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t / sqrt(d_k),
        alpha_t = sigmoid(W_2 W_1 x_t + b)^(1 / tau)

    The output of each head is normalised (RMSNorm), multiplied by SiLU(W_g x_t), and goes through `o_proj`. W_1 and W_2
    are `gk_proj`, a map of rank `gate_low_rank_dim`. With `use_short_conv` q, k and v first go through a causal
    depthwise convolution and SiLU.

    Its state is S: H d_k d_v = expand_k expand_v d_model^2 / H elements in float32 or better, and, with short
    convolutions, their W - 1 inputs, (W - 1)(2 expand_k + expand_v) d_model.

    The published layer has 4 heads, and the published block an MLP after it, and no convolution layer before it.

    Source: GLA, arXiv:2312.06635

    Letters: H num_heads, d_k = expand_k d_model / H, d_v = expand_v d_model / H, tau gate_logit_normalizer,
    W conv_size, x_t the layer's input.

    Raises:
        InputError: expand_k d_model or expand_v d_model is no whole number divisible by num_heads.
    """

    class Config(MixerConfig):
        expand_k: float = dial(0.5, sweep=(0.25, 0.5, 1.0), ge=0, help="width of all keys / d_model")
        expand_v: float = Field(1.0, gt=0, description="width of all values / d_model")
        num_heads: int = Field(2, ge=1, description="heads")
        gate_logit_normalizer: float = Field(16.0, gt=0, description="the root that is taken of the gate, near 1 then")
        gate_low_rank_dim: int = Field(16, ge=1, description="rank of the gate's linear map")
        use_short_conv: bool = Field(False, description="short convolutions on q, k and v")
        conv_size: int = Field(4, ge=1, description="taps of the short convolutions, the current token included")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.num_heads = config.num_heads
        self.gate_logit_normalizer = config.gate_logit_normalizer
        key_dim = expanded("expand_k", config.expand_k, d_model)
        value_dim = expanded("expand_v", config.expand_v, d_model)
        self.head_k_dim = head_dim(key_dim, config.num_heads, "expand_k * d_model")
        self.head_v_dim = head_dim(value_dim, config.num_heads, "expand_v * d_model")
        self.q_proj = nn.Linear(d_model, key_dim, bias=False)
        self.k_proj = nn.Linear(d_model, key_dim, bias=False)
        self.v_proj = nn.Linear(d_model, value_dim, bias=False)
        self.g_proj = nn.Linear(d_model, value_dim, bias=False)
        self.use_short_conv = config.use_short_conv
        self.conv_size = config.conv_size
        if config.use_short_conv:
            self.q_conv1d = DepthwiseConv(key_dim, config.conv_size, bias=False)
            self.k_conv1d = DepthwiseConv(key_dim, config.conv_size, bias=False)
            self.v_conv1d = DepthwiseConv(value_dim, config.conv_size, bias=False)
        rank = config.gate_low_rank_dim
        self.gk_proj = nn.Sequential(nn.Linear(d_model, rank, bias=False), nn.Linear(rank, key_dim))
        self.g_norm_swish_gate = RMSNorm(self.head_v_dim)
        self.o_proj = nn.Linear(value_dim, d_model, bias=False)

    def init_state(self, batch_size: int) -> GLAState:
        wide = torch.promote_types(self.o_proj.weight.dtype, torch.float32)
        memory = self.zeros(batch_size, self.num_heads, self.head_k_dim, self.head_v_dim, dtype=wide)
        inputs = (self.zeros(batch_size, self.conv_size - 1, conv.weight.shape[0]) for conv in self._convolutions())
        return GLAState(memory, tuple(inputs))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, log_decay, _ = self._project(x, None)
        o, _ = gated_linear_attention(q, k, v, log_decay)
        return self._out(o, x)

    def prefill(self, x: Tensor, state: GLAState) -> tuple[Tensor, GLAState]:
        q, k, v, log_decay, inputs = self._project(x, state.conv_inputs)
        o, memory = gated_linear_attention(q, k, v, log_decay, state=state.memory, output_state=True)
        assert memory is not None
        return self._out(o, x), GLAState(memory, inputs)

    def step(self, x: Tensor, state: GLAState) -> tuple[Tensor, GLAState]:
        *given, inputs = self._project(x.unsqueeze(1), state.conv_inputs)
        q, k, v, log_decay = (y.squeeze(1) for y in given)
        o, memory = gated_linear_attention_step(q, k, v, log_decay, state.memory)
        return self._out(o, x), GLAState(memory, inputs)

    def _convolutions(self) -> tuple[DepthwiseConv, ...]:
        return (self.q_conv1d, self.k_conv1d, self.v_conv1d) if self.use_short_conv else ()

    def _project(
        self, x: Tensor, inputs: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """x (batch, time, d_model) -> q, k, v, log alpha (batch, time, heads, width), and the convolutions' states."""
        qkv = [proj(x) for proj in (self.q_proj, self.k_proj, self.v_proj)]
        after = []
        for index, conv in enumerate(self._convolutions()):
            qkv[index], kept = conv(qkv[index], inputs[index] if inputs else None)
            after.append(kept)
        gate = self.gk_proj(x)
        gate = gate.to(torch.promote_types(gate.dtype, torch.float32))
        log_decay = F.logsigmoid(gate) / self.gate_logit_normalizer
        q, k, v, log_decay = (y.unflatten(-1, (self.num_heads, -1)) for y in (*qkv, log_decay))
        return q * self.head_k_dim**-0.5, k, v, log_decay, tuple(after)

    def _out(self, o: Tensor, x: Tensor) -> Tensor:
        gate = self.g_proj(x).unflatten(-1, (self.num_heads, -1))
        return self.o_proj(self.g_norm_swish_gate(o, gate).flatten(-2))
