"""A convolution as long as the sequence, whose kernel is a parameter."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig
from zoology.kernels.long_conv import long_conv, long_conv_inputs, long_conv_step
from zoology.registry import InputError


class LongConvState(NamedTuple):
    """The last l_max - 1 inputs, or all where they are fewer, oldest first: (batch, time, d_model).

    It grows with the context, as the kernel may weigh every input anew at every step.
    """

    conv_inputs: Tensor


@register_mixer("long-conv")
class LongConv(Mixer):
    """A long convolution with an explicit, regularised kernel, as safari's `LongConv` has it.

        K = squash(smooth(kernel)),  squash(k) = sign(k) max(|k| - lam, 0)
        y_t = sum_{j < L} K_j u_{t - j} + D * u_t;  GLU(W GELU(y) + b), the two halves of W being `output_linear.0`

    Nothing depends on the token but through the sum, so it recalls little on its own; Hyena has products beside it.
    Its state is all inputs that the kernel still reaches. Taps beyond l_max are 0, as in the public code.

    Source: "Simple hardware-efficient long convolutions for sequence modeling", arXiv:2302.06646, section 3

    Letters: u the layer's input, L l_max, lam the threshold of the squash; smooth, where it is asked for, the mean over
    a window of taps.

    Raises:
        InputError: smooth is even.
    """

    class Config(MixerConfig):
        l_max: int = Field(2048, ge=2, description="taps of the kernel: the context that it can see")
        lam: float = Field(1e-3, ge=0, description="threshold below which the kernel's weights count as 0")
        smooth: int = Field(1, ge=1, description="taps that the kernel is averaged over; odd, 1 for none")
        weight_init: Literal["double-exp", "random"] = Field(
            "double-exp", description="how the kernel starts: decaying at a rate of each channel's, or not"
        )

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        if config.smooth % 2 == 0:
            raise InputError(f"smooth = {config.smooth}: must be odd, as the window has a middle")
        self.D = nn.Parameter(torch.randn(1, d_model))
        self.kernel = _ExplicitKernel(d_model, config)
        self.output_linear = nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.GLU(dim=-1))

    def init_state(self, batch_size: int) -> LongConvState:
        return LongConvState(self.zeros(batch_size, 0, self.D.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        return self._output(long_conv(x, self.kernel()), x)

    def prefill(self, x: Tensor, state: LongConvState) -> tuple[Tensor, LongConvState]:
        y = self._output(long_conv(x, self.kernel(), state.conv_inputs), x)
        return y, LongConvState(long_conv_inputs(x, self.kernel.l_max, state.conv_inputs))

    def step(self, x: Tensor, state: LongConvState) -> tuple[Tensor, LongConvState]:
        y = self._output(long_conv_step(x, self.kernel(), state.conv_inputs), x)
        return y, LongConvState(long_conv_inputs(x.unsqueeze(1), self.kernel.l_max, state.conv_inputs))

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        return self.output_linear(F.gelu(torch.addcmul(y, x, self.D)))


class _ExplicitKernel(nn.Module):
    """kernel (1, channels, L), which does not decay, as published."""

    def __init__(self, channels: int, config: LongConv.Config):
        super().__init__()
        self.l_max, self.lam, self.smooth = config.l_max, config.lam, config.smooth
        if config.weight_init == "random":
            kernel = 0.002 * torch.randn(1, channels, config.l_max)
        else:  # exp(-j / L (H / 2)^(i / H)) for tap j of channel i of H
            rate = max(1.0, channels // 2) ** (torch.arange(channels) / channels)
            decay = torch.exp(-torch.outer(rate, torch.arange(config.l_max) / config.l_max))
            kernel = 0.02 * torch.randn(1, channels, config.l_max) * decay
        self.kernel = nn.Parameter(kernel)
        self.kernel._optim = {"weight_decay": 0.0}  # type: ignore[attr-defined]

    def forward(self) -> Tensor:
        """The regularised kernel (channels, L)."""
        k = self.kernel
        if self.smooth > 1:
            k = F.avg_pool1d(k, self.smooth, stride=1, padding=self.smooth // 2)
        return (F.relu(k.abs() - self.lam) * k.sign()).squeeze(0)
