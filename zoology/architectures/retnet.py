"""RetNet: linear attention whose heads forget, each at a fixed rate of its own."""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.attention import head_dim, rotate
from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.architectures.parts import RMSNorm
from zoology.kernels.linear_attention import LinearAttentionState, linear_attention, linear_attention_step
from zoology.registry import InputError


class RetNetState(NamedTuple):
    """S, with the keys turned as the last token sees them: (batch, heads, d_k, d_v)."""

    memory: Tensor


@register_mixer("retnet")
class RetNet(Mixer):
    """Multi-scale retention, as `MultiScaleRetention` of flash-linear-attention, whose weights load as they are.

        S_t = gamma R S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t / sqrt(d_k),    gamma = 1 - 2^(-5 - h), h = 0, 1, ...

    R turns the keys back by one position, rotary as in RoFormer (the paper's e^(i theta), coordinates i and i + d_k / 2
    being one complex number), so that a key's angle is that of its distance and no position need be kept. The output of
    each head is normalised (RMSNorm, which stands for the paper's GroupNorm in the public code), multiplied by
    SiLU(W_g x_t), and goes through `o_proj`.

    Its state is S: H d_k d_v = expand_k expand_v d_model^2 / H elements, in float32 or better.

    The published heads are 256 wide and 8 or more. The published block has an MLP after this layer, and no convolution
    layer before it; its code divides the scores by their sum, which the norm undoes.

    Source: RetNet, arXiv:2307.08621

    Letters: H num_heads, d_k = expand_k d_model / H, d_v = expand_v d_model / H, x_t the layer's input.

    Raises:
        InputError: expand_k d_model or expand_v d_model is no whole number divisible by num_heads, or d_k is odd.
    """

    class Config(MixerConfig):
        expand_k: float = dial(1.0, sweep=(0.5, 1.0, 2.0), ge=0, help="width of all keys / d_model")
        expand_v: float = Field(2.0, gt=0, description="width of all values / d_model")
        num_heads: int = Field(2, ge=1, description="heads, each with a decay of its own")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.num_heads = config.num_heads
        key_dim = expanded("expand_k", config.expand_k, d_model)
        value_dim = expanded("expand_v", config.expand_v, d_model)
        self.head_k_dim = head_dim(key_dim, config.num_heads, "expand_k * d_model")
        self.head_v_dim = head_dim(value_dim, config.num_heads, "expand_v * d_model")
        if self.head_k_dim % 2:
            raise InputError(
                "rotary positions turn pairs: expand_k * d_model / num_heads = "
                f"{config.expand_k} * {d_model} / {config.num_heads} must be even"
            )
        self.q_proj = nn.Linear(d_model, key_dim, bias=False)
        self.k_proj = nn.Linear(d_model, key_dim, bias=False)
        self.v_proj = nn.Linear(d_model, value_dim, bias=False)
        self.g_proj = nn.Linear(d_model, value_dim, bias=False)
        self.g_norm_swish_gate = RMSNorm(self.head_v_dim)
        self.o_proj = nn.Linear(value_dim, d_model, bias=False)

    def init_state(self, batch_size: int) -> RetNetState:
        wide = torch.promote_types(self.o_proj.weight.dtype, torch.float32)
        return RetNetState(self.zeros(batch_size, self.num_heads, self.head_k_dim, self.head_v_dim, dtype=wide))

    def forward(self, x: Tensor) -> Tensor:
        o, _ = linear_attention(*self._project(x), normalise=False, log_decay=self._log_decay())
        return self._out(o, x)

    def prefill(self, x: Tensor, state: RetNetState) -> tuple[Tensor, RetNetState]:
        before = LinearAttentionState.of_sum(state.memory)
        o, after = linear_attention(
            *self._project(x), normalise=False, log_decay=self._log_decay(), state=before, output_state=True
        )
        assert after is not None
        return self._out(o, x), RetNetState(_turn(after.kv, -x.shape[1]))

    def step(self, x: Tensor, state: RetNetState) -> tuple[Tensor, RetNetState]:
        q, k, v = (y.squeeze(1) for y in self._project(x.unsqueeze(1), position=0))
        before = LinearAttentionState.of_sum(_turn(state.memory, -1))
        o, after = linear_attention_step(q, k, v, before, normalise=False, log_decay=self._log_decay())
        return self._out(o, x), RetNetState(after.kv)

    def _log_decay(self) -> Tensor:
        """log gamma, (H,). Made anew, in float64, as float32 would round a decay near 1."""
        heads = torch.arange(self.num_heads, device=self.o_proj.weight.device, dtype=torch.float64)
        return torch.log1p(-torch.exp2(-5 - heads))

    def _project(self, x: Tensor, position: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries and keys (batch, time, heads, d_k) of tokens whose first stands at `position`, the state's
        last one being at 0, and values (batch, time, heads, d_v)."""
        q, k, v = (p(x).unflatten(-1, (self.num_heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q * self.head_k_dim**-0.5, position), rotate(k, position), v

    def _out(self, o: Tensor, x: Tensor) -> Tensor:
        gate = self.g_proj(x).unflatten(-1, (self.num_heads, -1))
        return self.o_proj(self.g_norm_swish_gate(o, gate).flatten(-2))


def expanded(name: str, factor: float, d_model: int) -> int:
    """factor * d_model, a width.

    Raises:
        InputError: it is no whole number, or 0.
    """
    width = round(factor * d_model)
    if width < 1 or abs(factor * d_model - width) > 1e-6:
        raise InputError(
            f"{name} * d_model = {factor} * {d_model} = {factor * d_model:g}: must be a whole number above 0"
        )
    return width


def _turn(memory: Tensor, position: int) -> Tensor:
    """The keys in S, (batch, heads, d_k, d_v), turned by `position`."""
    batch, heads, _, values = memory.shape
    keys = rotate(memory.transpose(2, 3).reshape(batch, 1, heads * values, -1), position)
    return keys.unflatten(2, (heads, values)).squeeze(1).transpose(2, 3).contiguous()
