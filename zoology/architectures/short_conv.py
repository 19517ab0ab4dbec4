"""A gated short convolution: compares neighbours, and keeps the last few tokens for it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.kernels.gated_short_conv import gated_short_conv
from zoology.kernels.short_conv import short_conv, short_conv_step


class ShortConvState(NamedTuple):
    """The last k - 1 inputs, oldest first, 0 before the beginning: (batch, k - 1, d_model)."""

    conv_inputs: Tensor


@register_mixer("short-conv")
class ShortConv(Mixer):
    """A causal depthwise convolution over k tokens, gated by the current token: y = conv_k(u) * (W u + b) + u.

    The first layer of the papers' models ("BaseConv"), where it puts each key beside its value. The `+ u` is the
    layer's own, inside the block's residual, as in the public code. Its state is the last k - 1 inputs.

    Source: Zoology, arXiv:2312.04927

    Letters: u the layer's input, k kernel_size.
    """

    class Config(MixerConfig):
        kernel_size: int = dial(3, sweep=(3,), help="taps of the convolution, the current token included")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.kernel_size = config.kernel_size
        self.gate = nn.Linear(d_model, d_model)
        self.gate.bias._open_gate = True  # type: ignore[assignment]
        bound = config.kernel_size**-0.5  # the range of a depthwise nn.Conv1d, which the papers start from
        self.conv_weight = nn.Parameter(torch.empty(d_model, config.kernel_size).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(d_model).uniform_(-bound, bound))

    def init_state(self, batch_size: int) -> ShortConvState:
        return ShortConvState(self.zeros(batch_size, self.kernel_size - 1, self.conv_bias.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        return gated_short_conv(x, self.gate.weight, self.gate.bias, self.conv_weight, self.conv_bias)

    def prefill(self, x: Tensor, state: ShortConvState) -> tuple[Tensor, ShortConvState]:
        y, inputs = short_conv(x, self.conv_weight, self.conv_bias, state.conv_inputs)
        return torch.addcmul(x, y, self.gate(x)), ShortConvState(inputs)

    def step(self, x: Tensor, state: ShortConvState) -> tuple[Tensor, ShortConvState]:
        y, inputs = short_conv_step(x, self.conv_weight, self.conv_bias, state.conv_inputs)
        return torch.addcmul(x, y, self.gate(x)), ShortConvState(inputs)
