"""BaseConv at full length: a gated convolution that sees the whole sequence."""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig
from zoology.architectures.hyena import check_odd
from zoology.architectures.implicit_filter import ImplicitFilter
from zoology.kernels.long_conv import long_conv, long_conv_inputs, long_conv_step


class BaseConvState(NamedTuple):
    """The last l_max - 1 inputs, or all where they are fewer, oldest first: (batch, time, d_model). It grows."""

    conv_inputs: Tensor


@register_mixer("base-conv")
class BaseConv(Mixer):
    """The gated convolution that stands for all of H3, Hyena and RWKV: y = (h * u + u) (W u + b) + u.

    `short-conv` is the same layer with an explicit kernel of a few taps, which the papers put first in every model;
    this one has a kernel h of l_max taps, made by a small network (`implicit`) or trained as it is (`explicit`). The
    first `+ u` is in the public code's long convolution, the last the layer's own, inside the block's residual. Its
    state is all inputs that the kernel still reaches. Taps beyond l_max are 0.

    Source: Zoology, arXiv:2312.04927, definition 4.1; the implicit kernel: Hyena, arXiv:2302.10866

    Letters: u the layer's input, * the convolution over time, W and b `projection`.

    Raises:
        InputError: emb_dim is even.
    """

    class Config(MixerConfig):
        l_max: int = Field(2048, ge=2, description="taps of the kernel: the context that it can see")
        filter: Literal["implicit", "explicit"] = Field(
            "implicit", description="made by a network, or trained as it is"
        )
        filter_order: int = Field(16, ge=1, description="width of the network that makes an implicit kernel")
        emb_dim: int = Field(3, ge=3, description="numbers that the network is given a position by; odd")
        w: float = Field(1.0, gt=0, description="frequency of the network's sines at the start")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        check_odd(config.emb_dim)
        self.d_model, self.l_max = d_model, config.l_max
        self.projection = nn.Linear(d_model, d_model)
        self.projection.bias._open_gate = True  # type: ignore[assignment]
        self.conv = (
            ImplicitFilter(d_model, config.l_max, config.filter_order, config.emb_dim, config.w)
            if config.filter == "implicit"
            else _ExplicitFilter(d_model, config.l_max)
        )

    def init_state(self, batch_size: int) -> BaseConvState:
        return BaseConvState(self.zeros(batch_size, 0, self.d_model))

    def forward(self, x: Tensor) -> Tensor:
        return self._output(long_conv(x, self._kernel(x.shape[1])), x)

    def prefill(self, x: Tensor, state: BaseConvState) -> tuple[Tensor, BaseConvState]:
        kernel = self._kernel(x.shape[1] + state.conv_inputs.shape[1])
        y = self._output(long_conv(x, kernel, state.conv_inputs), x)
        return y, BaseConvState(long_conv_inputs(x, self.l_max, state.conv_inputs))

    def step(self, x: Tensor, state: BaseConvState) -> tuple[Tensor, BaseConvState]:
        kernel = self._kernel(1 + state.conv_inputs.shape[1])
        y = self._output(long_conv_step(x, kernel, state.conv_inputs), x)
        return y, BaseConvState(long_conv_inputs(x.unsqueeze(1), self.l_max, state.conv_inputs))

    def _kernel(self, taps: int) -> Tensor:
        return self.conv.filter(max(1, min(taps, self.l_max)))

    def _output(self, convolved: Tensor, x: Tensor) -> Tensor:
        return torch.addcmul(x, convolved + x, self.projection(x))


class _ExplicitFilter(nn.Module):
    """weight (channels, L), standard normal at the start, as published."""

    def __init__(self, channels: int, l_max: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, l_max))

    def filter(self, taps: int) -> Tensor:
        """The first taps of the kernel: (channels, taps)."""
        return self.weight[:, :taps]
