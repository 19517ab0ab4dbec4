"""RWKV-7: a generalised delta rule, with a decay and a rate of correction of its own for every channel."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.architectures.parts import token_shift
from zoology.kernels.dplr import dplr, dplr_step
from zoology.registry import InputError

LEAST_LOG_DECAY = -math.exp(-0.5)
GROUP_NORM_EPS = 64e-5


class RWKV7State(NamedTuple):
    """What RWKV-7 keeps of its past, whatever its length.

    memory: (batch, H, N, N), S, in float32 or better.
    conv_last: (batch, d_model), the last input, which the token shift mixes into the next.
    """

    memory: Tensor
    conv_last: Tensor


@register_mixer("rwkv7")
class RWKV7(Mixer):
    """The time mixing of RWKV-7 "Goose", as `RWKV_Tmix_x070` of RWKV-LM, whose weights load as they are.

        S_t = S_{t-1} (diag(w_t) - kappa_t (a_t * kappa_t)^T) + v_t k_t^T,    o_t = S_t r_t
        w_t = exp(-exp(-1/2) sigmoid(w0 + tanh(x_w w1) w2)),    a_t = sigmoid(a0 + (x_a a1) a2)
        kappa_t = normalise(k * k_k),    k_t = k * (1 + (a_t - 1) * k_a),    k = W_k x_k
        y_t = W_o (g_t * (ln_x(o_t) + (r_t . (r_k * k_t)) v_t)),    g_t = sigmoid(x_g g1) g2

    where x_c = x_t + (x_{t-1} - x_t) * mu_c for each c of r, w, k, v, a, g, and ln_x normalises each head.

    Its state is S, H N^2 = d_model N elements in float32 or better, and the last input, d_model elements. Kept here is
    the transpose of the paper's S.

    A mixer alone is the first and only layer of the published model: its initial values are those of layer 0 of 1, and
    its values are their own residual, so that v0, v1 and v2 have nothing to do and are left out. The ranks of w, a and
    g are the published ones for the width, but at most d_model. The published model normalises its embedding, has a
    channel-mixing layer after each of these, no convolution layer before it, and trains w0 at twice the learning rate.

    Source: RWKV-7 "Goose", arXiv:2503.14456

    Letters: N head_size, H = d_model / N, mu_c x_r, ..., x_g.

    Raises:
        InputError: head_size does not divide d_model, or is 1.
    """

    class Config(MixerConfig):
        head_size: int = dial(8, sweep=(4, 8), ge=2, help="width of a head; 64 as published; must divide d_model")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        size = config.head_size
        if d_model % size:
            allowed = ", ".join(str(n) for n in range(2, d_model + 1) if d_model % n == 0)
            raise InputError(f"head_size = {size} does not divide d_model = {d_model}: must be one of {allowed}")
        self.head_size, self.num_heads = size, d_model // size
        place = torch.arange(d_model) / d_model
        for name, power in (("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)):
            setattr(self, f"x_{name}", _own(1 - place**power))
        linear = torch.linspace(0, 1, d_model) - 0.5
        zigzag = torch.linspace(-1, 1, size).repeat(self.num_heads)
        zigzag = zigzag * zigzag.abs()
        self.w0 = _own(-6 + 6 * (linear + 0.5) + 0.5 + 2.5 * zigzag)
        self.a0 = _own(-0.19 + 0.3 * zigzag + 0.4 * linear)
        for name, factor in (("w", 2.5), ("a", 2.5), ("g", 5.0)):
            rank = low_rank(d_model, factor)
            second = torch.empty(rank, d_model)
            nn.init.orthogonal_(second, gain=0.1)
            setattr(self, f"{name}1", _mark(nn.Parameter(torch.zeros(d_model, rank))))
            setattr(self, f"{name}2", _mark(nn.Parameter(second)))
        self.k_k = _own(0.71 - 0.1 * linear)
        self.k_a = _own(torch.full((d_model,), 1.02))
        self.r_k = _mark(nn.Parameter(torch.full((self.num_heads, size), -0.04)))
        for name, scale in (("receptance", 0.5), ("key", 0.05), ("value", 0.5), ("output", 0.0)):
            linear_map = nn.Linear(d_model, d_model, bias=False)
            nn.init.uniform_(linear_map.weight, -scale * d_model**-0.5, scale * d_model**-0.5)
            linear_map.weight._no_reinit = True  # type: ignore[assignment]
            setattr(self, name, linear_map)
        self.ln_x = nn.GroupNorm(self.num_heads, d_model, eps=GROUP_NORM_EPS)

    def init_state(self, batch_size: int) -> RWKV7State:
        wide = torch.promote_types(self.output.weight.dtype, torch.float32)
        size = self.head_size
        memory = self.zeros(batch_size, self.num_heads, size, size, dtype=wide)
        return RWKV7State(memory, self.zeros(batch_size, self.num_heads * size))

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, None, None)[0]

    def prefill(self, x: Tensor, state: RWKV7State) -> tuple[Tensor, RWKV7State]:
        return self._run(x, state.memory, state.conv_last)

    def _run(self, x: Tensor, memory: Tensor | None, last: Tensor | None) -> tuple[Tensor, RWKV7State]:
        previous, last = token_shift(x, last)
        inputs, gate = self._project(x, previous)
        o, memory = dplr(*inputs, floor=LEAST_LOG_DECAY, state=memory)
        return self._out(o, inputs, gate), RWKV7State(memory, last)

    def step(self, x: Tensor, state: RWKV7State) -> tuple[Tensor, RWKV7State]:
        inputs, gate = self._project(x, state.conv_last)
        o, memory = dplr_step(*inputs, state.memory)
        return self._out(o, inputs, gate), RWKV7State(memory, x.clone())

    def _project(self, x: Tensor, previous: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """x and its predecessors (..., d_model) -> r, k, v, -kappa, a * kappa and log w (..., H, N); g (..., d_model).

        The gates and kappa are made in float32 or better.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        change = previous - x

        def mixed(mu: Tensor) -> Tensor:
            return torch.addcmul(x, change, mu.view(-1))

        r, k, v = self.receptance(mixed(self.x_r)), self.key(mixed(self.x_k)), self.value(mixed(self.x_v))
        w = self.w0.view(-1) + (torch.tanh(mixed(self.x_w) @ self.w1) @ self.w2).to(wide)
        a = (self.a0.view(-1) + (mixed(self.x_a) @ self.a1 @ self.a2).to(wide)).sigmoid()
        g = torch.sigmoid(mixed(self.x_g) @ self.g1) @ self.g2
        k = k.to(wide)
        kappa = F.normalize((k * self.k_k.view(-1)).unflatten(-1, (self.num_heads, -1)), dim=-1)
        k = k * torch.addcmul(torch.ones_like(a), a - 1, self.k_a.view(-1))
        log_w = LEAST_LOG_DECAY * w.sigmoid()
        r, k, v, a, log_w = (t.unflatten(-1, (self.num_heads, -1)) for t in (r, k, v, a, log_w))
        return (r, k, v, -kappa, a * kappa, log_w), g

    def _out(self, o: Tensor, inputs: tuple[Tensor, ...], gate: Tensor) -> Tensor:
        """What was read (..., H, N), normalised, with the current token's own value, through the gate."""
        r, k, v, *_ = inputs
        normed = self.ln_x(o.reshape(-1, gate.shape[-1])).view(gate.shape)
        own = (r * k * self.r_k).sum(-1, keepdim=True) * v
        return self.output((normed + own.flatten(-2).to(normed.dtype)) * gate)


def low_rank(d_model: int, factor: float) -> int:
    """The published rank of a two-factor map, a multiple of 32 near factor * sqrt(d_model); at most d_model."""
    return min(d_model, max(32, round(factor * d_model**0.5 / 32) * 32))


def _own(values: Tensor) -> nn.Parameter:
    """A parameter for each channel, in the published shape (1, 1, d_model)."""
    return _mark(nn.Parameter(values.view(1, 1, -1).clone()))


def _mark(parameter: nn.Parameter) -> nn.Parameter:
    """Only the four square maps decay, as published."""
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter
