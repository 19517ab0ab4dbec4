"""RWKV-4: a running mean of values for every channel, weighted by keys and fading at a fixed rate."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig
from zoology.architectures.parts import token_shift
from zoology.kernels.wkv import WKVState, empty_state, wkv, wkv_step


class RWKV4State(NamedTuple):
    """What RWKV-4 keeps of its past, whatever its length.

    wkv: the sums and their exponent, 3 d_model elements, in float32 or better.
    conv_last: (batch, d_model), the last input, which the token shift mixes into the next.
    """

    wkv: WKVState
    conv_last: Tensor


@register_mixer("rwkv4")
class RWKV4(Mixer):
    """The time mixing of RWKV-4, as `RWKV_TimeMix` of RWKV-LM, whose weights load as they are.

        wkv_t = (sum_{i < t} e^(k_i - (t - 1 - i) w) v_i + e^(u + k_t) v_t)
                / (sum_{i < t} e^(k_i - (t - 1 - i) w) + e^(u + k_t)),
        y_t = W_o (sigmoid(r_t) * wkv_t)

    for every channel on its own, with r, k and v linear maps of mu_c x_t + (1 - mu_c) x_{t-1} for c of r, k, v.

    Its state is the two sums and the largest exponent in them, 3 d_model elements in float32 or better, and the last
    input, d_model elements. Nothing but d_model moves it.

    Initial values depend on the layer's place in the published model; a mixer alone begins as its first layer: rates
    from e^-5 to e^3 and mixes from 0 to 1 over the channels, W_v orthogonal, W_k, W_r and W_o at 0. The published model
    normalises its embedding, has a channel-mixing layer after each of these, no convolution layer before it, and no
    weight decay.

    Source: RWKV, arXiv:2305.13048

    Letters: w = exp(time_decay), u time_first, mu_c time_mix_r, time_mix_k, time_mix_v.
    """

    class Config(MixerConfig):
        """There is nothing to set."""

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.time_decay = nn.Parameter(-5 + 8 * torch.linspace(0, 1, d_model) ** 0.7)
        zigzag = 0.5 * ((torch.arange(d_model) + 1) % 3 - 1)
        self.time_first = nn.Parameter(math.log(0.3) + zigzag)
        place = (torch.arange(d_model) / d_model).view(1, 1, -1)
        self.time_mix_k = nn.Parameter(place.clone())
        self.time_mix_v = nn.Parameter(place.clone())
        self.time_mix_r = nn.Parameter(place.sqrt())
        for mix in (self.time_mix_k, self.time_mix_v, self.time_mix_r):
            mix._no_weight_decay = True  # type: ignore[attr-defined]
        for name in ("key", "value", "receptance", "output"):
            linear = nn.Linear(d_model, d_model, bias=False)
            (nn.init.orthogonal_ if name == "value" else nn.init.zeros_)(linear.weight)
            linear.weight._no_reinit = True  # type: ignore[assignment]
            setattr(self, name, linear)

    def init_state(self, batch_size: int) -> RWKV4State:
        return RWKV4State(
            empty_state(batch_size, self.time_first.detach()), self.zeros(batch_size, self.time_first.shape[0])
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, None, None)[0]

    def prefill(self, x: Tensor, state: RWKV4State) -> tuple[Tensor, RWKV4State]:
        return self._run(x, *state)

    def _run(self, x: Tensor, sums: WKVState | None, last: Tensor | None) -> tuple[Tensor, RWKV4State]:
        previous, last = token_shift(x, last)
        r, k, v = self._project(x, previous)
        y, sums = wkv(k, v, *self._rates(), sums)
        return self.output(r.sigmoid() * y), RWKV4State(sums, last)

    def step(self, x: Tensor, state: RWKV4State) -> tuple[Tensor, RWKV4State]:
        r, k, v = self._project(x, state.conv_last)
        y, sums = wkv_step(k, v, *self._rates(), state.wkv)
        return self.output(r.sigmoid() * y), RWKV4State(sums, x.clone())

    def _rates(self) -> tuple[Tensor, Tensor]:
        """w and u, in float32 or better."""
        wide = torch.promote_types(self.time_decay.dtype, torch.float32)
        return self.time_decay.to(wide).exp(), self.time_first.to(wide)

    def _project(self, x: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
        """x and its predecessors (..., d_model) -> r, k, v (..., d_model)."""
        maps = ((self.receptance, self.time_mix_r), (self.key, self.time_mix_k), (self.value, self.time_mix_v))
        return tuple(linear(torch.lerp(previous, x, mix.view(-1).to(x.dtype))) for linear, mix in maps)
