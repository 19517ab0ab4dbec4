"""DeltaNet: a linear memory that corrects what it holds under a key, so that a key can be bound anew."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.attention import head_dim
from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.architectures.parts import DepthwiseConv, RMSNorm, l2_normalise
from zoology.kernels.delta_rule import delta_rule, delta_rule_step
from zoology.kernels.short_conv import short_conv, short_conv_step
from zoology.registry import InputError


class DeltaNetState(NamedTuple):
    """What DeltaNet keeps of its past, whatever its length.

    memory: (batch, H, d_k, d_v), S, in float32 or better.
    conv_inputs: (batch, W - 1, 2 H d_k + H d_v), the last inputs of the short convolutions, oldest first, those of q,
        k and v side by side; (batch, 0, ...) without convolutions.
    """

    memory: Tensor
    conv_inputs: Tensor


class DeltaMixer(Mixer):
    """What DeltaNet and Gated DeltaNet share: the state, and that a piece is run by `_run`."""

    num_heads: int
    head_k_dim: int
    head_v_dim: int
    conv_size: int
    o_proj: nn.Linear

    def init_state(self, batch_size: int) -> DeltaNetState:
        wide = torch.promote_types(self.o_proj.weight.dtype, torch.float32)
        width = self.num_heads * (2 * self.head_k_dim + self.head_v_dim)
        return DeltaNetState(
            self.zeros(batch_size, self.num_heads, self.head_k_dim, self.head_v_dim, dtype=wide),
            self.zeros(batch_size, self.conv_size - 1, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, None, None)[0]

    def prefill(self, x: Tensor, state: DeltaNetState) -> tuple[Tensor, DeltaNetState]:
        return self._run(x, state.memory, state.conv_inputs)

    def _run(self, x: Tensor, memory: Tensor | None, inputs: Tensor | None) -> tuple[Tensor, DeltaNetState]:
        """A piece, x (B, T, d_model), after this memory and these inputs of the convolutions; None at the beginning."""
        raise NotImplementedError


@register_mixer("deltanet")
class DeltaNet(DeltaMixer):
    """DeltaNet, as the layer `DeltaNet` of flash-linear-attention, whose weights load as they are.

        S_t = S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,    o_t = S_t q_t,    beta_t = sigmoid(W_b x_t)

    q, k and v are linear maps of x, each through a causal depthwise convolution and SiLU; q and k then have length 1 in
    each head, and q is scaled by d_k^(-1/2). The output of each head is normalised (RMSNorm) before `o_proj`.

    Its state is S, H d_k d_v elements in float32 or better, and the W - 1 inputs of the convolutions,
    (W - 1)(2 H d_k + H d_v). Kept here is the transpose of the paper's S.

    The published model has an MLP after each of these layers, and no convolution layer of its own before it.

    Source: DeltaNet, arXiv:2406.06484; negative eigenvalues: arXiv:2411.12537

    Letters: H num_heads, d_k = expand_k d_model / H, d_v = expand_v d_model / H, W conv_size, beta_t the share of the
    error that is corrected.

    Raises:
        InputError: expand_k d_model or expand_v d_model is no whole number that num_heads divides.
    """

    class Config(MixerConfig):
        num_heads: int = dial(1, sweep=(1, 2, 4), help="heads; the memory has d_model^2 / num_heads elements")
        expand_k: float = Field(1.0, gt=0, description="width of all keys / d_model")
        expand_v: float = Field(1.0, gt=0, description="width of all values / d_model")
        use_short_conv: bool = Field(True, description="short convolutions on q, k and v")
        conv_size: int = Field(4, ge=1, description="taps of the short convolutions, the current token included")
        allow_neg_eigval: bool = Field(False, description="beta in (0, 2), so that a key's value can change its sign")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.num_heads = config.num_heads
        self.conv_size = config.conv_size if config.use_short_conv else 1
        self.beta_scale = 2.0 if config.allow_neg_eigval else 1.0
        key_dim, value_dim = (
            whole_width(f"{name} * d_model = {factor} * {d_model}", factor * d_model)
            for name, factor in (("expand_k", config.expand_k), ("expand_v", config.expand_v))
        )
        self.head_k_dim = head_dim(key_dim, config.num_heads, "expand_k * d_model")
        self.head_v_dim = head_dim(value_dim, config.num_heads, "expand_v * d_model")
        self.q_proj = nn.Linear(d_model, key_dim, bias=False)
        self.k_proj = nn.Linear(d_model, key_dim, bias=False)
        self.v_proj = nn.Linear(d_model, value_dim, bias=False)
        self.b_proj = nn.Linear(d_model, config.num_heads, bias=False)
        if config.use_short_conv:
            self.q_conv1d = DepthwiseConv(key_dim, config.conv_size, bias=False)
            self.k_conv1d = DepthwiseConv(key_dim, config.conv_size, bias=False)
            self.v_conv1d = DepthwiseConv(value_dim, config.conv_size, bias=False)
        self.o_norm = RMSNorm(self.head_v_dim)
        self.o_proj = nn.Linear(value_dim, d_model, bias=False)

    def _run(self, x: Tensor, memory: Tensor | None, inputs: Tensor | None) -> tuple[Tensor, DeltaNetState]:
        qkv, beta = self._project(x)
        qkv, inputs = short_conv_silu(qkv, convolutions(self), inputs)
        o, memory = delta_rule(*heads_of(qkv, self.num_heads, self.head_k_dim), beta, state=memory)
        return self.o_proj(self.o_norm(o).flatten(2)), DeltaNetState(memory, inputs)

    def step(self, x: Tensor, state: DeltaNetState) -> tuple[Tensor, DeltaNetState]:
        qkv, beta = self._project(x)
        qkv, inputs = short_conv_silu_step(qkv, convolutions(self), state.conv_inputs)
        o, memory = delta_rule_step(*heads_of(qkv, self.num_heads, self.head_k_dim), beta, None, state.memory)
        return self.o_proj(self.o_norm(o).flatten(1)), DeltaNetState(memory, inputs)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., d_model) -> q, k and v side by side before their convolutions, and beta (..., H)."""
        together, b = project(x, (self.q_proj, self.k_proj, self.v_proj, self.b_proj)).split_with_sizes(
            (self.num_heads * (2 * self.head_k_dim + self.head_v_dim), self.num_heads), dim=-1
        )
        return together, b.to(torch.promote_types(b.dtype, torch.float32)).sigmoid() * self.beta_scale


def project(x: Tensor, maps: Sequence[nn.Linear]) -> Tensor:
    """Several linear maps without biases as one product: (..., d_model) -> (..., sum of their widths)."""
    return F.linear(x, torch.cat([m.weight for m in maps]))


def convolutions(mixer: nn.Module) -> Tensor | None:
    """The taps of a mixer's convolutions of q, k and v, as one: (channels, W), or None where it has none."""
    if not hasattr(mixer, "q_conv1d"):
        return None
    return torch.cat([conv.weight for conv in (mixer.q_conv1d, mixer.k_conv1d, mixer.v_conv1d)]).squeeze(1)


def short_conv_silu(x: Tensor, weight: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """x (batch, time, channels), state or None at the beginning -> SiLU of its convolution, state after it."""
    if weight is None:
        return F.silu(x), x[:, :0] if state is None else state
    y, state = short_conv(x, weight, None, state)
    return F.silu(y), state


def short_conv_silu_step(x: Tensor, weight: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token of `short_conv_silu`: x (batch, channels)."""
    if weight is None:
        return F.silu(x), state
    y, state = short_conv_step(x, weight, None, state)
    return F.silu(y), state


def heads_of(qkv: Tensor, num_heads: int, head_k_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 2 H d_k + H d_v) -> q of length d_k^(-1/2) and k of length 1, (..., H, d_k), and v (..., H, d_v)."""
    keys = num_heads * head_k_dim
    qk, v = qkv[..., : 2 * keys], qkv[..., 2 * keys :]
    q, k = l2_normalise(qk.unflatten(-1, (2, num_heads, head_k_dim))).unbind(-3)
    return q * head_k_dim**-0.5, k, v.unflatten(-1, (num_heads, -1))


def whole_width(text: str, width: float) -> int:
    """A width as an int.

    Raises:
        InputError: it is no whole number of at least 1. `text` says what it is.
    """
    if round(width) < 1 or abs(width - round(width)) > 1e-6:
        raise InputError(f"{text} = {width:g}: must be a whole number, at least 1")
    return round(width)
