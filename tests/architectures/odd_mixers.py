"""Mixers that look odd and are honest: the audit must pass each. A plugin file, as `cheaters.py` is."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from zoology import ContextMixer, Mixer, MixerConfig, dial, register_mixer

GROWTH: dict[str, str] = {}
"""Each mixer's name, and how its state grows."""


def odd(name: str, growth: str = "constant"):
    """Register an honest mixer with the growth that is to be measured."""
    GROWTH[name] = growth
    return register_mixer(name)


@odd("odd-scan")
class Scan(Mixer):
    """The least that one can write."""

    class Config(MixerConfig):
        gamma: float = dial(0.9, sweep=(0.5, 0.9), ge=0, le=1)

    def __init__(self, d_model, config):
        super().__init__()
        self.w, self.gamma = nn.Linear(d_model, d_model), config.gamma

    def init_state(self, batch_size):
        return self.zeros(batch_size, self.w.in_features)

    def step(self, x, state):
        state = self.gamma * state + x
        return self.w(state), state


@odd("odd-no-parameters")
class NoParameters(Mixer):
    """A running mean, its count an integer tensor. Nested tuples and dicts."""

    def __init__(self, d_model, config):
        super().__init__()
        self.d_model = d_model

    def init_state(self, batch_size):
        return ({"sum": torch.zeros(batch_size, self.d_model)}, [torch.zeros(batch_size, 1, dtype=torch.int64)])

    def step(self, x, state):
        total, count = state[0]["sum"] + x, state[1][0] + 1
        return total / count, ({"sum": total}, [count])


class Cache(NamedTuple):
    keys: Any
    values: Any


class Attend(Mixer):
    """Causal attention over a cache; subclasses bend it."""

    def __init__(self, d_model, config):
        super().__init__()
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.d = d_model

    def init_state(self, batch_size):
        return Cache(self.zeros(batch_size, 0, self.d), self.zeros(batch_size, 0, self.d))

    def project(self, x, start):
        return self.qkv(x).chunk(3, -1)

    def weigh(self, scores, visible):
        return scores.masked_fill(~visible, -torch.inf).softmax(-1)

    def prefill(self, x, state):
        start, length = state[0].shape[1], x.shape[1]
        q, k, v = self.project(x, start)
        keys, values = torch.cat([state[0], k], 1), torch.cat([state[1], v], 1)
        visible = torch.ones(length, start + length, dtype=torch.bool).tril(start)
        scores = q @ keys.to(q.dtype).mT / self.d**0.5
        return self.weigh(scores, visible) @ values.to(q.dtype), Cache(keys, values)

    def step(self, x, state):
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state


GROWS = "grows with the context"


@odd("odd-rotary-cache", GROWS)
class RotaryCache(Attend):
    """Its sines are made on first use and kept, in an attribute that says nothing about any input."""

    angles: Any = None

    def project(self, x, start):
        q, k, v = self.qkv(x).chunk(3, -1)
        end = start + x.shape[1]
        if self.angles is None or len(self.angles) < end:
            half = torch.arange(self.d // 2, dtype=torch.float64)
            self.angles = torch.arange(2 * end)[:, None] * 100.0 ** (-half / self.d)
        cos, sin = (f(self.angles[start:end]).to(x.dtype) for f in (torch.cos, torch.sin))

        def turn(u):
            a, b = u.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        return turn(q), turn(k), v


@odd("odd-bfloat16-cache", GROWS)
class Bfloat16Cache(Attend):
    """Its forward reads the rounded keys and values too."""

    def init_state(self, batch_size):
        return Cache(*(t.bfloat16() for t in super().init_state(batch_size)))

    def project(self, x, start):
        q, k, v = super().project(x, start)
        return q, k.bfloat16(), v.bfloat16()


@odd("odd-top-k", GROWS)
class TopK(Attend):
    def weigh(self, scores, visible):
        scores = scores.masked_fill(~visible, -torch.inf)
        least = scores.topk(min(4, scores.shape[-1]), -1).values[..., -1:]
        # a key that repeats has the score of its twin up to round-off: both stay
        return scores.masked_fill(scores < least - 1e-4, -torch.inf).softmax(-1)


@odd("odd-float32-inside", GROWS)
class Float32Inside(Attend):
    """Computes and keeps float32, whatever it is given."""

    def init_state(self, batch_size):
        return Cache(*(t.float() for t in super().init_state(batch_size)))

    def prefill(self, x, state):
        y, state = super().prefill(x, state)
        return y.to(x.dtype), state

    def project(self, x, start):
        q, k, v = super().project(x, start)
        return q.float(), k.float(), v.float()


@odd("odd-float32-only", GROWS)
class Float32Only(Attend):
    """Fails in float64: a table that is no buffer."""

    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        self.table = torch.randn(d_model, d_model)

    def project(self, x, start):
        return super().project(x @ self.table, start)


@odd("odd-list-of-tokens", GROWS)
class ListOfTokens(Attend):
    """A tensor for each token, in lists."""

    def init_state(self, batch_size):
        return {"keys": [], "values": []}

    def prefill(self, x, state):
        kept = [
            torch.stack(state[part], 1) if state[part] else self.zeros(len(x), 0, self.d) for part in ("keys", "values")
        ]
        y, after = super().prefill(x, Cache(*kept))
        return y, {"keys": list(after.keys.unbind(1)), "values": list(after.values.unbind(1))}


@odd("odd-long-convolution", GROWS)
class LongConvolution(Mixer):
    """A convolution as long as the sequence, by FFT; its state is all inputs."""

    def __init__(self, d_model, config):
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(0.1, 2, d_model))

    def init_state(self, batch_size):
        return {"conv": self.zeros(batch_size, 0, len(self.decay))}

    def prefill(self, x, state):
        u = torch.cat([state["conv"], x], 1)
        n = u.shape[1]
        kernel = torch.exp(-F.softplus(self.decay) * torch.arange(n, dtype=x.dtype)[:, None])
        y = torch.fft.irfft(torch.fft.rfft(u, 2 * n, 1) * torch.fft.rfft(kernel, 2 * n, 0), 2 * n, 1)
        return y[:, n - x.shape[1] : n], {"conv": u}

    def step(self, x, state):
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state


@odd("odd-complex")
class Complex(Mixer):
    """A diagonal complex recurrence with a learned beginning."""

    def __init__(self, d_model, config):
        super().__init__()
        self.rate = nn.Parameter(torch.linspace(0.1, 1, d_model))
        self.turn = nn.Parameter(torch.linspace(0, 3, d_model))
        self.start = nn.Parameter(torch.randn(d_model))

    def init_state(self, batch_size):
        return torch.complex(self.start, self.start).expand(batch_size, -1)

    def step(self, x, state):
        pole = torch.exp(torch.complex(-F.softplus(self.rate), self.turn))
        state = pole * state + x
        return state.real, state


@odd("odd-running-maximum")
class RunningMaximum(Mixer):
    """Exponentials held in range by a running maximum that begins at minus infinity."""

    def __init__(self, d_model, config):
        super().__init__()
        self.key, self.value = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def init_state(self, batch_size):
        zeros = self.zeros(batch_size, self.key.in_features)
        return {"top": zeros - torch.inf, "sum": zeros, "weight": zeros}

    def step(self, x, state):
        k, v = self.key(x), self.value(x)
        top = torch.maximum(state["top"], k)
        old, new = torch.exp(state["top"] - top), torch.exp(k - top)
        total, weight = old * state["sum"] + new * v, old * state["weight"] + new
        return total / weight, {"top": top, "sum": total, "weight": weight}


@odd("odd-gru")
class Gru(Mixer):
    """torch's GRU over a sequence; with noisy weights it is chaotic. Dropout, in training only."""

    def __init__(self, d_model, config):
        super().__init__()
        self.gru, self.drop = nn.GRU(d_model, d_model, batch_first=True), nn.Dropout(0.5)

    def init_state(self, batch_size):
        return self.zeros(batch_size, self.gru.hidden_size)

    def prefill(self, x, state):
        y, state = self.gru(x, state[None].contiguous())
        return self.drop(y), state[0]

    def step(self, x, state):
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state


@odd("odd-chaos")
class Chaos(Mixer):
    """h = tanh(3 W h + x): a change of 1e-10 grows to the size of the state."""

    def __init__(self, d_model, config):
        super().__init__()
        self.w = nn.Parameter(nn.init.orthogonal_(torch.empty(d_model, d_model)))

    def init_state(self, batch_size):
        return self.zeros(batch_size, len(self.w))

    def step(self, x, state):
        state = torch.tanh(1.2 * state @ self.w + x)
        return state, state


@odd("odd-explosive")
class Explosive(Mixer):
    """Its decay is a raw parameter: noise takes it beyond 1."""

    def __init__(self, d_model, config):
        super().__init__()
        self.decay = nn.Parameter(torch.full((d_model,), 0.9))

    def init_state(self, batch_size):
        return self.zeros(batch_size, len(self.decay))

    def step(self, x, state):
        state = self.decay * state + x
        return state, state


@odd("odd-ring", "grows, then stays at 5 tokens")
class Ring(Mixer):
    """The mean of the last five inputs, kept in a view of the tensor that they were cut from."""

    def __init__(self, d_model, config):
        super().__init__()
        self.w = nn.Linear(d_model, d_model)

    def init_state(self, batch_size):
        return {"conv_tail": self.zeros(batch_size, 0, self.w.in_features)}

    def step(self, x, state):
        seen = torch.cat([state["conv_tail"], x[:, None]], 1)[:, -5:]
        return self.w(seen.mean(1)), {"conv_tail": seen}


@odd("odd-delta")
class Delta(Mixer):
    """The delta rule, step by step."""

    def __init__(self, d_model, config):
        super().__init__()
        self.qkv, self.beta = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, 1)

    def init_state(self, batch_size):
        d = self.beta.in_features
        return {"memory": self.zeros(batch_size, d, d)}

    def step(self, x, state):
        q, k, v = self.qkv(x).chunk(3, -1)
        k, memory = F.normalize(k, dim=-1), state["memory"]
        error = v - torch.einsum("bkv,bk->bv", memory, k)
        memory = memory + torch.sigmoid(self.beta(x))[..., None] * k[..., None] * error[:, None]
        return torch.einsum("bkv,bk->bv", memory, q), {"memory": memory}


@odd("odd-encoder")
class Encoder(ContextMixer):
    """A GRU reads the context backwards, and another goes on forwards from where that ends."""

    def __init__(self, d_model, config):
        super().__init__()
        self.back, self.on = (nn.GRU(d_model, d_model, batch_first=True) for _ in range(2))

    def init_state(self, batch_size):
        return self.zeros(batch_size, self.on.hidden_size)

    def read_context(self, x):
        y, state = self.back(x.flip(1))
        z, state = self.on(x, state)
        return y.flip(1) + z, state[0]

    def prefill(self, x, state):
        y, state = self.on(x, state[None].contiguous())
        return y, state[0]

    def step(self, x, state):
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state


@odd("odd-prefix-attention", GROWS)
class PrefixAttention(Attend, ContextMixer):
    """Attention without a mask inside the context, causal after it; keeps keys and values."""

    def read_context(self, x):
        q, k, v = self.project(x, 0)
        return (q @ k.mT / self.d**0.5).softmax(-1) @ v, Cache(k, v)
