"""Prefix linear attention: an encoder reads the context whole into the state, and a causal decoder goes on from it."""

import torch
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.attention import head_dim
from zoology.architectures.base import ContextMixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.kernels.linear_attention import LinearAttentionState, linear_attention, linear_attention_step


@register_mixer("prefix-linear-attention")
class PrefixLinearAttention(ContextMixer):
    """Linear attention with Taylor features whose sums begin with all of the context, under projections of their own.

        S_t = sum_{s <= M} phi(k^e_s) v^e_s^T + sum_{s <= t} phi(k^d_s) v^d_s^T    (z_t likewise, of phi(k) alone)
        o_t = phi(q_t) S_t / (phi(q_t) . z_t)

    A query of the context sees all of the context through the encoder's keys and values, and its past through the
    decoder's; one after it sees both sums. So what is kept, and what is not, can depend on what comes later in the
    context. The state is that of linear attention: S and z, H (d_v + 1) F elements with F = (f + 1)(f + 2) / 2, in
    float32 or better. Nothing of the encoder is left beside them.

    Source: Just read twice, arXiv:2407.05483, section 4 (JRT-RNN)

    Parameters are named as those of the public PrefixLinearAttention: `proj_k_enc` and `proj_v_enc` are the encoder's.

    Letters: M context_length, e encoder, d decoder, phi Taylor features (Based, arXiv:2402.18668), H num_heads,
    d_v = d_model / H, f feature_dim, the width of one head's queries and keys, F that of phi.

    Raises:
        InputError: d_model is not divisible by num_heads.
    """

    class Config(MixerConfig):
        feature_dim: int = dial(16, sweep=(4, 8, 16), help="width of queries and keys, before the feature map")
        num_heads: int = Field(1, ge=1, description="heads; must divide d_model")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.feature_dim = config.feature_dim
        self.num_heads = config.num_heads
        self.head_dim = head_dim(d_model, config.num_heads)
        width = config.num_heads * config.feature_dim
        self.proj_q = nn.Linear(d_model, width, bias=False)
        self.proj_k = nn.Linear(d_model, width, bias=False)
        self.proj_v = nn.Linear(d_model, d_model, bias=False)
        self.proj_k_enc = nn.Linear(d_model, width, bias=False)
        self.proj_v_enc = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def init_state(self, batch_size: int) -> LinearAttentionState:
        f = self.feature_dim
        wide = torch.promote_types(self.out_proj.weight.dtype, torch.float32)
        shape = (batch_size, self.num_heads, (f + 1) * (f + 2) // 2)
        return LinearAttentionState(self.zeros(*shape, self.head_dim, dtype=wide), self.zeros(*shape, dtype=wide))

    def forward(self, x: Tensor, context_length: int) -> Tensor:  # type: ignore[override]
        return self._read(x, context_length, output_state=False)[0]

    def read_context(self, x: Tensor) -> tuple[Tensor, LinearAttentionState]:
        y, state = self._read(x, x.shape[1], output_state=True)
        assert state is not None
        return y, state

    def prefill(self, x: Tensor, state: LinearAttentionState) -> tuple[Tensor, LinearAttentionState]:
        o, after = linear_attention(*self._project(x), feature_map="taylor", state=state, output_state=True)
        assert after is not None
        return self.out_proj(o.flatten(2)), after

    def step(self, x: Tensor, state: LinearAttentionState) -> tuple[Tensor, LinearAttentionState]:
        o, after = linear_attention_step(*self._project(x), state, feature_map="taylor")
        return self.out_proj(o.flatten(1)), after

    def _read(self, x: Tensor, context: int, output_state: bool) -> tuple[Tensor, LinearAttentionState | None]:
        """A sequence from its beginning, the first `context` tokens of it the context.

        The encoder's keys and values stand before the sequence, where causal attention shows them to every query. (The
        queries beside them are there to fill the places; what they get is dropped.)
        """
        q, k, v = self._project(x)
        seen = x[:, :context]
        q = torch.cat((q[:, :context], q), dim=1)
        k = torch.cat((self._heads(self.proj_k_enc(seen)), k), dim=1)
        v = torch.cat((self._heads(self.proj_v_enc(seen)), v), dim=1)
        o, state = linear_attention(q, k, v, feature_map="taylor", output_state=output_state)
        return self.out_proj(o[:, seen.shape[1] :].flatten(2)), state

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., d_model) -> queries and keys (..., heads, f) and values (..., heads, d_v) of the decoder."""
        return self._heads(self.proj_q(x)), self._heads(self.proj_k(x)), self._heads(self.proj_v(x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))
