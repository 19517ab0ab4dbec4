"""Softmax attention over everything seen so far: the reference point, whose state grows with the context."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig
from zoology.architectures.parts import together
from zoology.kernels.attention import attention, self_attention, takes
from zoology.kernels.linear import linear
from zoology.registry import InputError

ROTARY_BASE = 10_000.0
SHORT = 256
"""Tokens up to which our kernel is as fast on a GPU as torch's, whose blocks are larger, with what is around it."""


class AttentionState(NamedTuple):
    """Every key and value so far, 2 H d T elements for each sequence: (batch, time, heads, head width) each."""

    keys: Tensor
    values: Tensor


@register_mixer("attention")
class Attention(Mixer):
    """Causal softmax attention. Its state is the keys and values of the whole context.

    Source: Vaswani et al., arXiv:1706.03762; rotary positions: RoFormer, arXiv:2104.09864

    Letters: H num_heads, d = d_model / H, T tokens so far. With rotary positions the keys are kept turned, and the
    next token's position is the number of keys that are kept.

    Raises:
        InputError: d_model is not divisible by num_heads, or d is odd where positions are rotary.
    """

    class Config(MixerConfig):
        num_heads: int = Field(1, ge=1, description="attention heads; must divide d_model")
        rotary: bool = Field(False, description="rotary positions on queries and keys")
        dropout: float = Field(0.0, ge=0, lt=1, description="on the attention weights, in training")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = head_dim(d_model, config.num_heads)
        self.rotary = config.rotary
        self.dropout = config.dropout
        if self.rotary and self.head_dim % 2:
            raise InputError(
                f"rotary positions turn pairs: d_model / num_heads = {d_model} / {config.num_heads} must be even"
            )
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def init_state(self, batch_size: int) -> AttentionState:
        shape = (batch_size, 0, self.num_heads, self.head_dim)
        return AttentionState(self.zeros(*shape), self.zeros(*shape))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] <= SHORT and not self.rotary and takes(x.device, x.dtype, self.head_dim):
            weight = torch.cat([p.weight for p in (self.q_proj, self.k_proj, self.v_proj)])
            qkv = linear(x, weight).unflatten(-1, (3, self.num_heads, -1))
            return self.out_proj(self_attention(qkv, dropout=self._dropout()).flatten(2))
        return self._attend(*self._project(x, 0))

    def prefill(self, x: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        q, k, v = self._project(x, state.keys.shape[1])
        state = AttentionState(torch.cat((state.keys, k), dim=1), torch.cat((state.values, v), dim=1))
        return self._attend(q, *state), state

    def step(self, x: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        y, state = self.prefill(x.unsqueeze(1), state)
        return y.squeeze(1), state

    def _project(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (batch, time, heads, head width) of tokens whose first stands at `position`."""
        parts = together(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in parts)
        return (rotate(q, position), rotate(k, position), v) if self.rotary else (q, k, v)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The queries are the last of the tokens that the keys belong to."""
        new, seen = q.shape[1], keys.shape[1]
        dropout = self._dropout()
        if new > 1 and seen <= SHORT and takes(q.device, q.dtype, self.head_dim):
            return self.out_proj(attention(q, keys, values, dropout=dropout).flatten(2))
        mask = None
        if 1 < new < seen:  # is_causal would align the first query with the first key
            mask = torch.ones(new, seen, dtype=torch.bool, device=q.device).tril(seen - new)
        q, keys, values = (t.transpose(1, 2) for t in (q, keys, values))
        causal = new > 1 and mask is None
        o = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.out_proj(o.transpose(1, 2).flatten(2))

    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0


def head_dim(d_model: int, num_heads: int, name: str = "d_model") -> int:
    """The width of one head.

    Args:
        d_model: the width of all heads.
        num_heads: how many share it.
        name: what the message calls the width.

    Raises:
        InputError: d_model is not divisible by num_heads, with the numbers of heads that it is divisible by.
    """
    if d_model % num_heads:
        allowed = ", ".join(str(n) for n in range(1, d_model + 1) if d_model % n == 0)
        raise InputError(
            f"{name} = {d_model} is not divisible by num_heads = {num_heads}: num_heads must be one of {allowed}"
        )
    return d_model // num_heads


def rotate(x: Tensor, position: int) -> Tensor:
    """Rotary positions: x (batch, time, heads, d), its first token at `position`, turned token by token.

    Coordinates i and i + d / 2 turn together by position * 10000^(-2 i / d). The angles are made in float32 or better.
    """
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    frequency = ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=wide) / half)
    time = torch.arange(position, position + x.shape[1], device=x.device, dtype=wide)
    angle = (time.unsqueeze(1) * frequency).unsqueeze(1)  # (time, 1, d / 2)
    cos, sin = angle.cos(), angle.sin()
    a, b = x.to(wide).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)
