"""Hyena: long convolutions with implicit kernels, and products with projections of the input between them."""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig
from zoology.architectures.implicit_filter import ImplicitFilter
from zoology.architectures.parts import DepthwiseConv
from zoology.kernels.long_conv import long_conv, long_conv_inputs, long_conv_step
from zoology.registry import InputError


class HyenaState(NamedTuple):
    """(W - 1)(n + 1) D + (n - 1) S D elements for each sequence, S the inputs so far, or l_max - 1 where they are more.

    conv_short: (batch, W - 1, (n + 1) D), the last inputs of the short convolution.
    conv_long: the inputs of each long convolution, (batch, S, D): they grow with the context.
    """

    conv_short: Tensor
    conv_long: tuple[Tensor, ...]


@register_mixer("hyena")
class Hyena(Mixer):
    """Hyena, the recurrence of order n over long convolutions and products, as safari's `HyenaOperator` has it.

        x_1, ..., x_n, v = short_filter(in_proj(u))
        v = h_i * (x v) + bias_i * (x v)  for x = x_n, ..., x_2 (* the convolution; x v the product, element by element)
        out_proj(x_1 v)

    The kernels h_i come from a small network over the position of each tap (`implicit_filter.py`). Its state is all
    inputs of the long convolutions that the kernels still reach. Taps beyond l_max are 0; positions are shares of
    l_max, so it is best near the length of the sequences, which is what the published experiments set.

    Source: Hyena, arXiv:2302.10866, section 3

    Letters: u the layer's input, n order, D d_model, W short_filter_order.

    Raises:
        InputError: emb_dim is even.
    """

    class Config(MixerConfig):
        l_max: int = Field(2048, ge=2, description="taps of the kernels: the context that they can see")
        order: int = Field(2, ge=2, description="n, products with projections of the input")
        filter_order: int = Field(64, ge=1, description="width of the network that makes the kernels")
        emb_dim: int = Field(3, ge=3, description="numbers that the network is given a position by; odd")
        w: float = Field(1.0, gt=0, description="frequency of the network's sines at the start")
        short_filter_order: int = Field(3, ge=1, description="taps of the short convolution")
        filter_lr: float = Field(1e-3, gt=0, description="learning rate of the network, before the schedule")
        lr_pos_emb: float = Field(1e-5, gt=0, description="learning rate of the positions, before the schedule")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        check_odd(config.emb_dim)
        self.d_model, self.order, self.l_max = d_model, config.order, config.l_max
        self.kept = config.short_filter_order - 1
        self.in_proj = nn.Linear(d_model, (config.order + 1) * d_model)
        self.short_filter = DepthwiseConv((config.order + 1) * d_model, config.short_filter_order, silu=False)
        channels = d_model * (config.order - 1)
        self.filter_fn = ImplicitFilter(
            channels, config.l_max, config.filter_order, config.emb_dim, config.w, config.filter_lr, config.lr_pos_emb
        )
        self.filter_fn.bias = nn.Parameter(torch.randn(channels))
        self.out_proj = nn.Linear(d_model, d_model)

    def init_state(self, batch_size: int) -> HyenaState:
        short = self.zeros(batch_size, self.kept, (self.order + 1) * self.d_model)
        return HyenaState(short, tuple(self.zeros(batch_size, 0, self.d_model) for _ in range(self.order - 1)))

    def forward(self, x: Tensor) -> Tensor:
        *gates, v = self.short_filter(self.in_proj(x))[0].split(self.d_model, dim=-1)
        for gate, kernel, bias in zip(reversed(gates[1:]), *self._kernels(x.shape[1]), strict=True):
            v = v * gate
            v = torch.addcmul(long_conv(v, kernel), v, bias)
        return self.out_proj(v * gates[0])

    def prefill(self, x: Tensor, state: HyenaState) -> tuple[Tensor, HyenaState]:
        projected, short = self.short_filter(self.in_proj(x), state.conv_short)
        *gates, v = projected.split(self.d_model, dim=-1)
        after = []
        kernels, biases = self._kernels(x.shape[1] + state.conv_long[0].shape[1])
        for gate, kernel, bias, past in zip(reversed(gates[1:]), kernels, biases, state.conv_long, strict=True):
            v = v * gate
            after.append(long_conv_inputs(v, self.l_max, past))
            v = torch.addcmul(long_conv(v, kernel, past), v, bias)
        return self.out_proj(v * gates[0]), HyenaState(short, tuple(after))

    def step(self, x: Tensor, state: HyenaState) -> tuple[Tensor, HyenaState]:
        projected, short = self.short_filter.step(self.in_proj(x), state.conv_short)
        *gates, v = projected.split(self.d_model, dim=-1)
        after = []
        kernels, biases = self._kernels(1 + state.conv_long[0].shape[1])
        for gate, kernel, bias, past in zip(reversed(gates[1:]), kernels, biases, state.conv_long, strict=True):
            v = v * gate
            after.append(long_conv_inputs(v.unsqueeze(1), self.l_max, past))
            v = torch.addcmul(long_conv_step(v, kernel, past), v, bias)
        return self.out_proj(v * gates[0]), HyenaState(short, tuple(after))

    def _kernels(self, taps: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Kernels (D, taps) and biases (D,), one for each long convolution; their channels are interleaved."""
        taps = max(1, min(taps, self.l_max))
        kernels = self.filter_fn.filter(taps).unflatten(0, (self.d_model, -1))
        return kernels.unbind(1), self.filter_fn.bias.unflatten(0, (self.d_model, -1)).unbind(1)  # type: ignore[operator]


def check_odd(emb_dim: int) -> None:
    """Raises InputError where a position cannot be given by emb_dim numbers: one, and pairs of sines and cosines."""
    if emb_dim % 2 == 0:
        raise InputError(f"emb_dim = {emb_dim}: must be odd, one number and pairs of a cosine and a sine")
