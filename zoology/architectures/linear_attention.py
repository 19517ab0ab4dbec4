"""Linear attention: a matrix of outer products for a state, whose size the feature width sets."""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.attention import head_dim
from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.architectures.feature_maps import Taylor, build_feature_map
from zoology.architectures.parts import RMSNorm, together
from zoology.kernels.linear_attention import LinearAttentionState, linear_attention, linear_attention_step


class PositionedState(NamedTuple):
    """What linear attention keeps where its features depend on the position.

    kv, normaliser: as those of `LinearAttentionState`.
    position: (B, 1) int32, tokens so far.
    """

    kv: Tensor
    normaliser: Tensor
    position: Tensor


State = LinearAttentionState | PositionedState


@register_mixer("linear-attention")
class LinearAttention(Mixer):
    """Causal linear attention with one of the feature maps of the literature.

        S_t = S_{t-1} + phi(k_t) v_t^T,    z_t = z_{t-1} + phi(k_t),    o_t = phi(q_t) S_t / (phi(q_t) . z_t)

    Its state is S and z: H (d_v + 1) F elements, whatever the context, in float32 or better. F is (f + 1)(f + 2) / 2
    for taylor, symmetric products held once; f for elu, relu and identity; 2 f for hedgehog, cosformer and dpfp;
    num_features for performer; f (f + 1) / 2 for rebased. identity has no z, as its weights can be negative, but an
    RMSNorm on each head's output; cosformer keeps the position too. `feature_maps.py` has the definitions.

    Source: Based, arXiv:2402.18668 (taylor); Katharopoulos et al., arXiv:2006.16236 (elu); T2R, arXiv:2103.13076
    (relu); Hedgehog, arXiv:2402.04347; cosFormer, arXiv:2202.08791; Performer, arXiv:2009.14794; DPFP,
    arXiv:2102.11174; ReBased, arXiv:2402.10644

    Letters: H num_heads, d_v = d_model / H, f feature_dim (the width of one head's queries and keys), F features of a
    head.

    Raises:
        InputError: d_model is not divisible by num_heads, or the feature map needs a wider feature_dim.
    """

    class Config(MixerConfig):
        feature_dim: int = dial(16, sweep=(4, 8, 16), help="width of queries and keys, before the feature map")
        num_heads: int = Field(1, ge=1, description="heads; must divide d_model")
        feature_map: Literal[
            "taylor", "elu", "relu", "identity", "hedgehog", "cosformer", "performer", "dpfp", "rebased"
        ] = Field("taylor", description="what stands for the exponential")
        max_length: int = Field(1024, ge=1, description="cosformer: tokens over which near ones weigh more")
        num_features: int = Field(0, ge=0, description="performer: random features of a head; 0 for f log f")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.feature_dim = config.feature_dim
        self.num_heads = config.num_heads
        self.head_dim = head_dim(d_model, config.num_heads)
        self.feature_map = build_feature_map(
            config.feature_map, config.num_heads, config.feature_dim, config.max_length, config.num_features
        )
        self.q_proj = nn.Linear(d_model, config.num_heads * config.feature_dim, bias=False)
        self.k_proj = nn.Linear(d_model, config.num_heads * config.feature_dim, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm = None if self.feature_map.normalise else RMSNorm(self.head_dim)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def init_state(self, batch_size: int) -> State:
        wide = torch.promote_types(self.out_proj.weight.dtype, torch.float32)
        shape = (batch_size, self.num_heads, self.feature_map.width)
        kv = self.zeros(*shape, self.head_dim, dtype=wide)
        normaliser = self.zeros(*shape if self.feature_map.normalise else (*shape[:2], 0), dtype=wide)
        if self.feature_map.positional:
            return PositionedState(kv, normaliser, self.zeros(batch_size, 1, dtype=torch.int32))
        return LinearAttentionState(kv, normaliser)

    def forward(self, x: Tensor) -> Tensor:
        o, _ = linear_attention(*self._project(x, self._positions(x, None)), **self._options)
        return self._output(o)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        positions = self._positions(x, state)
        sums = LinearAttentionState(state.kv, state.normaliser)
        o, after = linear_attention(*self._project(x, positions), **self._options, state=sums, output_state=True)
        assert after is not None
        return self._output(o), self._after(state, after, x.shape[1])

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        position = state.position[:, 0] + 1 if isinstance(state, PositionedState) else None
        sums = LinearAttentionState(state.kv, state.normaliser)
        o, after = linear_attention_step(*self._project(x, position), sums, **self._options)
        return self._output(o), self._after(state, after, 1)

    @property
    def _options(self) -> dict[str, object]:
        kernel_map = "taylor" if isinstance(self.feature_map, Taylor) else "identity"
        return {"feature_map": kernel_map, "normalise": self.feature_map.normalise}

    def _positions(self, x: Tensor, state: State | None) -> Tensor | None:
        """The positions of x (batch, time, d_model): (time,) or (batch, time), or None where they do not count."""
        if not self.feature_map.positional:
            return None
        times = torch.arange(1, x.shape[1] + 1, device=x.device)
        return state.position + times if isinstance(state, PositionedState) else times

    def _project(self, x: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(..., d_model) -> features of queries and keys (..., heads, F), and values (..., heads, d_v)."""
        parts = together(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in parts)
        return (*self.feature_map(q, k, positions), v)

    def _output(self, o: Tensor) -> Tensor:
        """(..., heads, d_v) -> (..., d_model)."""
        return self.out_proj((o if self.norm is None else self.norm(o)).flatten(-2))

    @staticmethod
    def _after(before: State, sums: LinearAttentionState, tokens: int) -> State:
        return PositionedState(*sums, before.position + tokens) if isinstance(before, PositionedState) else sums
