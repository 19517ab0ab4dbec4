"""Softmax attention over the last tokens only: a state of fixed size, exact within the window."""

from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.attention import head_dim
from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.architectures.parts import together
from zoology.kernels.attention import attention, takes
from zoology.kernels.sliding_window_attention import (
    SlidingWindowState,
    sliding_window_attention,
    sliding_window_attention_step,
)


@register_mixer("sliding-window")
class SlidingWindow(Mixer):
    """Causal softmax attention over exactly `window` tokens, the current one included.

    Its state is the keys and values of the last min(T, window) tokens: 2 H d min(T, window) elements.

    Source: Longformer, arXiv:2004.05150; in recall models: Based, arXiv:2402.18668

    Letters: H num_heads, d = d_model / H, T tokens so far.

    Raises:
        InputError: d_model is not divisible by num_heads.
    """

    class Config(MixerConfig):
        window: int = dial(16, sweep=(8, 16, 32), help="tokens that are visible, the current one included")
        num_heads: int = Field(1, ge=1, description="attention heads; must divide d_model")
        dropout: float = Field(0.0, ge=0, lt=1, description="on the attention weights, in training")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.window = config.window
        self.num_heads = config.num_heads
        self.head_dim = head_dim(d_model, config.num_heads)
        self.dropout = config.dropout
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def init_state(self, batch_size: int) -> SlidingWindowState:
        shape = (batch_size, 0, self.num_heads, self.head_dim)
        return SlidingWindowState(self.zeros(*shape), self.zeros(*shape))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x)
        dropout = self._dropout()
        if dropout and takes(q.device, q.dtype, self.head_dim):  # the kernel that drops weights inside
            o = attention(q, k, v, window=self.window, dropout=dropout)
        else:
            o, _ = sliding_window_attention(q, k, v, window=self.window, dropout=dropout)
        return self.out_proj(o.flatten(2))

    def prefill(self, x: Tensor, state: SlidingWindowState) -> tuple[Tensor, SlidingWindowState]:
        o, after = sliding_window_attention(
            *self._project(x), window=self.window, state=state, dropout=self._dropout(), output_state=True
        )
        assert after is not None
        return self.out_proj(o.flatten(2)), after

    def step(self, x: Tensor, state: SlidingWindowState) -> tuple[Tensor, SlidingWindowState]:
        o, after = sliding_window_attention_step(*self._project(x), state, window=self.window)
        return self.out_proj(o.flatten(1)), after

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: (..., d_model) -> (..., heads, head width)."""
        heads = (self.num_heads, self.head_dim)
        parts = together(x, self.q_proj, self.k_proj, self.v_proj)
        return tuple(part.unflatten(-1, heads) for part in parts)  # type: ignore[return-value]

    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0
