"""Mixers that look better than they are. The audit must refuse each, for the reason given beside it.

A plugin file: the audit's fresh process loads it as it would a user's.
"""

import functools
import os
import sys
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from zoology import ContextMixer, InputError, Mixer, register_mixer

CHEATERS: dict[str, str] = {}
"""Each cheater's name, and a regular expression that one of its findings must match."""

FUTURE = "sees the future"
OUTSIDE = "outside the state"
STEP = "gives another function than forward"


def cheater(name: str, finding: str):
    """Register a cheater with the finding that is due to it."""
    CHEATERS[name] = finding
    return register_mixer(name)


class Honest(Mixer):
    """h = 0.9 h + W x, y = V h: what the cheaters start from. Its forward scans."""

    def __init__(self, d_model, config):
        super().__init__()
        self.w = nn.Linear(d_model, d_model)
        self.v = nn.Linear(d_model, d_model)

    def init_state(self, batch_size):
        return {"h": self.zeros(batch_size, self.w.out_features)}

    def step(self, x, state):
        h = 0.9 * state["h"] + self.w(x)
        return self.v(h), {"h": h}

    def plain(self, x):
        """The honest outputs (batch, time, d_model)."""
        return Honest.prefill(self, x, Honest.init_state(self, len(x)))[0]

    def prefill(self, x, state):
        outputs = []
        for t in range(x.shape[1]):
            y, state = self.step(x[:, t], state)
            outputs.append(y)
        return torch.stack(outputs, 1), state


def following(x):
    """Each position's next input, zeros after the last."""
    return F.pad(x[:, 1:], (0, 0, 0, 1))


# --- it sees the future ------------------------------------------------------------------------------------------


@cheater("cheat-bidirectional", FUTURE)
class Bidirectional(Honest):
    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        self.conv = nn.Conv1d(d_model, d_model, 3, padding=1)

    def forward(self, x):
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


@cheater("cheat-zero-gate", FUTURE)
class ZeroGate(Honest):
    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.plain(x) + self.gate * following(x)


@cheater("cheat-tiny-leak", FUTURE)
class TinyLeak(Honest):
    def forward(self, x):
        return self.plain(x) + 1e-4 * following(x)


@cheater("cheat-float32-leak", FUTURE)
class Float32Leak(Honest):
    def forward(self, x):
        return self.plain(x) + following(x) * (x.dtype == torch.float32)


@cheater("cheat-long", FUTURE)
class Long(Honest):
    def forward(self, x):
        return self.plain(x) + following(x) * (x.shape[1] > 32)


@cheater("cheat-longer-than-the-lengths", FUTURE)
class Longer(Honest):
    def forward(self, x):
        return self.plain(x) + following(x) * (x.shape[1] > 128)


@cheater("cheat-last-position", FUTURE)
class LastPosition(Honest):
    def forward(self, x):
        y = self.plain(x)
        return torch.cat([y[:, :-2], y[:, -2:-1] + x[:, -1:], y[:, -1:]], 1) if x.shape[1] > 1 else y


@cheater("cheat-one-position", FUTURE)
class OnePosition(Honest):
    def forward(self, x):
        y = self.plain(x)
        return torch.cat([y[:, :44], y[:, 44:45] + x[:, 50:51], y[:, 45:]], 1) if x.shape[1] > 50 else y


@cheater("cheat-large-inputs", FUTURE)
class LargeInputs(Honest):
    def forward(self, x):
        return self.plain(x) + following(x) * (x.abs().amax((1, 2), keepdim=True) > 12)


@cheater("cheat-repeated-inputs", FUTURE)
class RepeatedInputs(Honest):
    def forward(self, x):
        seen = ((x[:, :, None] - x[:, None]).abs().amax(-1) == 0).tril(-1).any(-1)
        return self.plain(x) + following(x * seen[..., None])


@cheater("cheat-loud", FUTURE)
class Loud(Honest):
    """One position is so loud that the others' leak is small beside it; the block's next norm makes them equal."""

    def forward(self, x):
        return self.plain(x) + 0.01 * following(x) + 1e6 * (torch.arange(x.shape[1])[:, None] == 0)


@cheater("cheat-chunk-mean", FUTURE)
class ChunkMean(Honest):
    def forward(self, x):
        chunks = [c.mean(1, keepdim=True).expand_as(c) for c in x.split(16, 1)]
        return self.plain(x) + torch.cat(chunks, 1)


@cheater("cheat-normalised-over-time", FUTURE)
class NormalisedOverTime(Honest):
    def forward(self, x):
        y = self.plain(x)
        return y / y.abs().amax((1, 2), keepdim=True)


@cheater("cheat-peek", FUTURE)
class Peek(Honest):
    """Its scan is ordinary; its step reads the whole sequence behind the view that it is given."""

    def step(self, x, state):
        y, state = super().step(x, state)
        return (y + x._base.sum(1) if x._base is not None and x._base.dim() == 3 else y), state


@cheater("cheat-length", "depends on the length")
class Length(Honest):
    def forward(self, x):
        return self.plain(x) * (1 + x.shape[1] / 100)


@cheater("cheat-write-x", "writes into its input x")
class WriteX(Honest):
    """Through the residual, the block would see the next token."""

    def forward(self, x):
        y = self.plain(x)
        x += following(x)
        return y


@cheater("cheat-write-x-in-step", "step writes into its input x")
class WriteXInStep(Honest):
    def step(self, x, state):
        y, state = super().step(x, state)
        x.mul_(2)
        return y, state


# --- it reads the context whole, and more than that ---------------------------------------------------------------


class Reads(ContextMixer):
    """h starts from the mean of W_e x over the context, and goes on as Honest's: what such cheaters start from."""

    def __init__(self, d_model, config):
        super().__init__()
        self.encoder, self.w, self.v = (nn.Linear(d_model, d_model) for _ in range(3))

    def init_state(self, batch_size):
        return {"h": self.zeros(batch_size, self.w.out_features)}

    def read_context(self, x):
        return self.prefill(x, {"h": self.encoder(x).mean(1)})

    def step(self, x, state):
        h = 0.9 * state["h"] + self.w(x)
        return self.v(h), {"h": h}


@cheater("cheat-beyond-the-context", FUTURE)
class BeyondTheContext(Reads):
    """Off by one: the encoder reads the first token after the context too."""

    def forward(self, x, context_length):
        return self.prefill(x, {"h": self.encoder(x[:, : context_length + 1]).mean(1)})[0]


@cheater("cheat-all-is-context", FUTURE)
class AllIsContext(Reads):
    def forward(self, x, context_length):
        return self.read_context(x)[0]


@cheater("cheat-long-context", FUTURE)
class LongContext(Reads):
    """Looks beyond long contexts only."""

    def forward(self, x, context_length):
        y = super().forward(x, context_length)
        return y + following(x) if context_length > 64 else y


@cheater("cheat-late-in-the-question", FUTURE)
class LateInTheQuestion(Reads):
    """Honest about the context; each later token sees the next."""

    def forward(self, x, context_length):
        y = super().forward(x, context_length)
        return y + following(x) * (torch.arange(x.shape[1])[:, None] > context_length)


@cheater("cheat-context-kept", OUTSIDE)
class ContextKept(Reads):
    """Keeps the mean of the context's outputs beside the state, and adds it from then on."""

    kept: Any = None

    def read_context(self, x):
        self.kept = None
        y, state = super().read_context(x)
        self.kept = y.mean(1)
        return y, state

    def step(self, x, state):
        y, state = super().step(x, state)
        return (y if self.kept is None or len(self.kept) != len(x) else y + self.kept), state


@cheater("cheat-other-encoder", STEP)
class OtherEncoder(Reads):
    """Trains with an encoder, and runs without."""

    def read_context(self, x):
        return self.prefill(x, self.init_state(len(x)))

    def forward(self, x, context_length):
        return self.prefill(x, {"h": self.encoder(x[:, :context_length]).mean(1)})[0]


@cheater("cheat-context-rows", "rows of a batch")
class ContextRows(Reads):
    def read_context(self, x):
        return self.prefill(x, {"h": self.encoder(x).mean((0, 1)).expand(len(x), -1)})


# --- its ways to run are different functions ---------------------------------------------------------------------


@cheater("cheat-other-decay", f"step {STEP}")
class OtherDecay(Honest):
    def forward(self, x):
        return self.plain(x)

    def prefill(self, x, state):
        h, outputs = state["h"], []
        for t in range(x.shape[1]):
            h = 0.9 * h + self.w(x[:, t])
            outputs.append(self.v(h))
        return torch.stack(outputs, 1), {"h": h}

    def step(self, x, state):
        h = 0.5 * state["h"] + self.w(x)
        return self.v(h), {"h": h}

    def plain(self, x):
        return self.prefill(x, self.init_state(len(x)))[0]


@cheater("cheat-late-step", STEP)
class LateStep(Honest):
    def init_state(self, batch_size):
        return {**super().init_state(batch_size), "n": torch.zeros(batch_size, 1, dtype=torch.int64)}

    def step(self, x, state):
        y, new = super().step(x, state)
        return y * (state["n"] < 40), {**new, "n": state["n"] + 1}

    def forward(self, x):
        return Honest.prefill(_Plain(self), x, Honest.init_state(self, len(x)))[0]


class _Plain:
    """A mixer's honest step, bound for a scan."""

    def __init__(self, mixer):
        self.step = functools.partial(Honest.step, mixer)


@cheater("cheat-forgetful-prefill", f"prefill in pieces {STEP}")
class ForgetfulPrefill(Honest):
    def prefill(self, x, state):
        return super().prefill(x, self.init_state(len(x)))


@cheater("cheat-better-forward", STEP)
class BetterForward(Honest):
    """Trains and scores as attention, and claims the state of a recurrence."""

    def forward(self, x):
        return F.scaled_dot_product_attention(self.w(x), x, self.v(x), is_causal=True)


@cheater("cheat-size-by-path", "prefill leaves")
class SizeByPath(Honest):
    def prefill(self, x, state):
        y, state = super().prefill(x, {"h": state["h"]})
        return y, {**state, "extra": self.zeros(len(x), 8)}

    def step(self, x, state):
        return super().step(x, state)


# --- it keeps something outside the state ------------------------------------------------------------------------


class Remembers(Honest):
    """Adds the mean of all inputs so far, kept by `load` and `save` in a place of the subclass's choice."""

    def init_state(self, batch_size):
        state = super().init_state(batch_size)
        self.save(state, self.zeros(batch_size, self.w.in_features))
        return state

    def step(self, x, state):
        memory = self.load(state)
        memory = (memory if memory is not None and memory.shape == x.shape else torch.zeros_like(x)) + x
        y, new = super().step(x, state)
        self.save(new, memory.detach())
        return y + memory, new


@cheater("cheat-attribute", OUTSIDE)
class Attribute(Remembers):
    def load(self, state):
        return self.memory

    def save(self, state, value):
        self.memory = value


@cheater("cheat-object-dict", OUTSIDE)
class ObjectDict(Remembers):
    def load(self, state):
        return self.__dict__["_forward_pre_hooks"].get("memory") or self.__dict__.get("_")

    def save(self, state, value):
        object.__setattr__(self, "_", value)


@cheater("cheat-buffer", "parameters or buffers")
class Buffer(Remembers):
    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        self.register_buffer("memory", torch.zeros(1, d_model))

    def load(self, state):
        return self.memory

    def save(self, state, value):
        self.memory = value


@cheater("cheat-parameter", "parameters or buffers")
class ParameterData(Remembers):
    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        self.memory = nn.Parameter(torch.zeros(64, d_model))

    def load(self, state):
        return self.memory.data[: len(state["h"])].clone()

    def save(self, state, value):
        self.memory.data[: len(value)] = value


@cheater("cheat-global", OUTSIDE)
class Global(Remembers):
    def load(self, state):
        return MEMORY.get("last")

    def save(self, state, value):
        MEMORY["last"] = value


MEMORY: dict[Any, Any] = {}


@cheater("cheat-class", OUTSIDE)
class ClassAttribute(Remembers):
    memory: Any = None

    def load(self, state):
        return type(self).memory

    def save(self, state, value):
        type(self).memory = value


def content(state):
    """The bytes of the state, as a key under which anything can be found again."""
    return state["h"].detach().numpy().tobytes()


@cheater("cheat-keyed-global", f"fresh process.*{OUTSIDE}")
class KeyedGlobal(Remembers):
    """A hidden store under the state's own bytes: a copy of the state finds it as well as the state does."""

    def load(self, state):
        return MEMORY.get(content(state))

    def save(self, state, value):
        MEMORY[content(state)] = value


@cheater("cheat-keyed-class", f"fresh process.*{OUTSIDE}")
class KeyedClass(KeyedGlobal):
    store: dict[bytes, Any] = {}

    def load(self, state):
        return self.store.get(content(state))

    def save(self, state, value):
        self.store[content(state)] = value


def _closure():
    store = {}
    return store.get, store.__setitem__


_GET, _SET = _closure()


@cheater("cheat-closure", f"fresh process.*{OUTSIDE}")
class Closure(KeyedGlobal):
    def load(self, state):
        return _GET(content(state))

    def save(self, state, value):
        _SET(content(state), value)


@functools.lru_cache(None)
def _cell(key):
    return []


@cheater("cheat-lru-cache", f"fresh process.*{OUTSIDE}")
class LruCache(KeyedGlobal):
    def load(self, state):
        return next(iter(_cell(content(state))), None)

    def save(self, state, value):
        _cell(content(state))[:] = [value]


@cheater("cheat-default-argument", f"fresh process.*{OUTSIDE}")
class DefaultArgument(KeyedGlobal):
    def load(self, state, store={}):  # noqa: B006 the mutable default is the cheat
        return store.get(content(state))

    def save(self, state, value):
        type(self).load.__defaults__[0][content(state)] = value


@cheater("cheat-torch-attribute", f"fresh process.*{OUTSIDE}")
class TorchAttribute(KeyedGlobal):
    def load(self, state):
        return F.__dict__.get("_zoology_cheat", {}).get(content(state))

    def save(self, state, value):
        F.__dict__.setdefault("_zoology_cheat", {})[content(state)] = value


@cheater("cheat-sys-modules", f"fresh process.*{OUTSIDE}")
class SysModules(KeyedGlobal):
    def load(self, state):
        return vars(sys).get("_zoology_cheat", {}).get(content(state))

    def save(self, state, value):
        vars(sys).setdefault("_zoology_cheat", {})[content(state)] = value


@cheater("cheat-environment", f"fresh process.*{OUTSIDE}")
class Environment(KeyedGlobal):
    def load(self, state):
        text = os.environ.get(f"ZOOLOGY_CHEAT_{hash(content(state))}")
        return (
            None
            if text is None
            else torch.tensor([float.fromhex(v) for v in text.split()]).to(state["h"].dtype).reshape(state["h"].shape)
        )

    def save(self, state, value):
        os.environ[f"ZOOLOGY_CHEAT_{hash(content(state))}"] = " ".join(v.hex() for v in value.flatten().tolist())


@cheater("cheat-identity", OUTSIDE)
class Identity(Remembers):
    """A hidden store under the state's tensor object."""

    store: dict[int, Any] = {}

    def load(self, state):
        return self.store.get(id(state["h"]), (None, None))[1]

    def save(self, state, value):
        self.store[id(state["h"])] = state["h"], value  # the tensor too, so that its id stays its own


@cheater("cheat-random-state", f"{OUTSIDE}|{STEP}|rows of a batch")
class RandomState(Honest):
    """Counts in the seed of torch's global generator."""

    def init_state(self, batch_size):
        torch.manual_seed(0)
        return super().init_state(batch_size)

    def step(self, x, state):
        torch.manual_seed(torch.initial_seed() + 1)
        y, state = super().step(x, state)
        return y + torch.initial_seed() % 7, state


# --- its state says something that is not measured ----------------------------------------------------------------


class Encodes(Honest):
    """Keeps whether the mean of the last input was positive (row 0's), as `mark` writes and `read` reads it."""

    def init_state(self, batch_size):
        return self.mark(super().init_state(batch_size), False)

    def step(self, x, state):
        y, new = super().step(x, {"h": self.tensor(state)})
        return y + (1 if self.read(state) else -1), self.mark(new, bool(x[0].mean() > 0))

    def tensor(self, state):
        return state["h"]


class EncodesTime(Encodes):
    """Keeps whether the number of tokens was odd, the same for all rows."""

    def step(self, x, state):
        y, new = Honest.step(self, x, {"h": self.tensor(state)})
        bit = self.read(state)
        return y + (1 if bit else -1), self.mark(new, not bit)


@cheater("cheat-int", "is a int.*keep a number as a tensor")
class PythonInt(Honest):
    def init_state(self, batch_size):
        return {**super().init_state(batch_size), "position": 0}

    def step(self, x, state):
        y, new = super().step(x, state)
        return y, {**new, "position": state["position"] + 1}


@cheater("cheat-numbers", "is a float")
class PythonList(Honest):
    def init_state(self, batch_size):
        return {**super().init_state(batch_size), "seen": []}

    def step(self, x, state):
        y, new = super().step(x, state)
        return y + sum(state["seen"]), {**new, "seen": [*state["seen"], x.mean().item()]}


@cheater("cheat-string", "is a str")
class String(Honest):
    def init_state(self, batch_size):
        return {**super().init_state(batch_size), "seen": ""}

    def step(self, x, state):
        y, new = super().step(x, state)
        return y, {**new, "seen": state["seen"] + "x"}


@cheater("cheat-none", "is a NoneType")
class Nothing(Encodes):
    def mark(self, state, bit):
        return {**state, "bit": None if bit else state["h"]}

    def read(self, state):
        return state["bit"] is None


@cheater("cheat-keys", "keys, shapes or dtypes depend")
class Keys(Encodes):
    def mark(self, state, bit):
        return {**state, f"bit {bit}": state["h"][:0]}

    def read(self, state):
        return "bit True" in state


@cheater("cheat-key-order", "keys, shapes or dtypes depend")
class KeyOrder(Encodes):
    def mark(self, state, bit):
        empty = {"empty": state["h"][:0]}
        return {**state, **empty} if bit else {**empty, **state}

    def read(self, state):
        return next(iter(state)) == "h"


@cheater("cheat-shape", "keys, shapes or dtypes depend")
class Shape(Encodes):
    def mark(self, state, bit):
        return {**state, "bit": state["h"].new_zeros(len(state["h"]), 2 if bit else 1)}

    def read(self, state):
        return state["bit"].shape[1] == 2


@cheater("cheat-empty-tensors", "keys, shapes or dtypes depend")
class EmptyTensors(Encodes):
    def mark(self, state, bit):
        return {**state, "bit": state["h"].new_zeros(0, 2 if bit else 1)}

    def read(self, state):
        return state["bit"].shape[1] == 2


@cheater("cheat-empty-list", "keys, shapes or dtypes depend")
class EmptyList(Encodes):
    def mark(self, state, bit):
        return {**state, "bit": [[]] if bit else []}

    def read(self, state):
        return bool(state["bit"])


@cheater("cheat-dtype", "keys, shapes or dtypes depend")
class Dtype(Encodes):
    def mark(self, state, bit):
        return {**state, "bit": torch.zeros(len(state["h"]), dtype=torch.int8 if bit else torch.uint8)}

    def read(self, state):
        return state["bit"].dtype == torch.int8


class Inner(NamedTuple):
    h: Any


class Other(NamedTuple):
    h: Any


@cheater("cheat-type", "keys, shapes or dtypes depend")
class TypeOfState(Encodes):
    def mark(self, state, bit):
        return (Inner if bit else Other)(state["h"])

    def read(self, state):
        return type(state) is Inner

    def tensor(self, state):
        return state.h


class Marked(Inner):
    """Not __slots__ = (): each has a dict of its own."""


@cheater("cheat-named-tuple-attribute", "carries the attribute")
class NamedTupleAttribute(Encodes):
    def mark(self, state, bit):
        marked = Marked(state["h"])
        marked.bit = bit
        return marked

    def read(self, state):
        return state.bit

    def tensor(self, state):
        return state.h


@cheater("cheat-tensor-attribute", "carries the attribute")
class TensorAttribute(Encodes):
    def mark(self, state, bit):
        state["h"].bit = bit
        return state

    def read(self, state):
        return state["h"].bit


@cheater("cheat-dict-subclass", "is a OrderedDict")
class DictSubclass(Encodes):
    def mark(self, state, bit):
        marked = OrderedDict(state)
        marked.bit = bit
        return marked

    def read(self, state):
        return state.bit


class Key(str):
    bit = False


@cheater("cheat-key-subclass", "key of type Key")
class KeySubclass(Encodes):
    def mark(self, state, bit):
        key = Key("h")
        key.bit = bit
        return {key: state["h"]}

    def read(self, state):
        return next(iter(state)).bit


class MarkedTensor(torch.Tensor):
    pass


@cheater("cheat-tensor-subclass", "is a MarkedTensor")
class TensorSubclass(Encodes):
    def mark(self, state, bit):
        marked = state["h"].as_subclass(MarkedTensor)
        marked.bit = bit
        return {"h": marked}

    def read(self, state):
        return state["h"].bit

    def tensor(self, state):
        return state["h"].as_subclass(torch.Tensor)


@cheater("cheat-sparse", "sparse_coo")
class Sparse(Honest):
    def init_state(self, batch_size):
        return {"h": super().init_state(batch_size)["h"].to_sparse()}

    def step(self, x, state):
        y, new = super().step(x, {"h": state["h"].to_dense()})
        return y, {"h": new["h"].to_sparse()}


@cheater("cheat-view", OUTSIDE)
class View(Honest):
    """Shows the newest input, and keeps all of them in the storage behind it."""

    def init_state(self, batch_size):
        return {"last": self.zeros(batch_size, self.w.in_features)}

    def step(self, x, state):
        last = state["last"]
        base = last._base if last._base is not None else last[None]
        history = torch.cat([base, x.detach()[None]])
        return self.v(history.sum(0)) + self.w(x), {"last": history[-1]}


@cheater("cheat-flag", OUTSIDE)
class Flag(EncodesTime):
    def mark(self, state, bit):
        return {"h": state["h"].detach().requires_grad_(bit)}

    def read(self, state):
        return state["h"].requires_grad


@cheater("cheat-strides", f"{OUTSIDE}|rows of a batch")
class Strides(EncodesTime):
    def mark(self, state, bit):
        return {"h": state["h"].t().contiguous().t() if bit else state["h"].contiguous()}

    def read(self, state):
        return not state["h"].is_contiguous()


@cheater("cheat-alias", OUTSIDE)
class Alias(EncodesTime):
    def mark(self, state, bit):
        return {"h": state["h"], "g": state["h"] if bit else state["h"].clone()}

    def read(self, state):
        return state["g"] is state["h"]


@cheater("cheat-conjugate", OUTSIDE)
class Conjugate(EncodesTime):
    """The lazy conjugation bit of a complex tensor."""

    def mark(self, state, bit):
        c = torch.complex(state["h"], state["h"])
        return {"h": c.conj().resolve_conj().conj() if bit else c}

    def read(self, state):
        return state["h"].is_conj()

    def tensor(self, state):
        return state["h"].real.clone()


@cheater("cheat-state-by-batch", "more than 3 times|more than 2 times")
class StateByBatch(Honest):
    def init_state(self, batch_size):
        extra = 64 if batch_size > 1 else 0
        return {**super().init_state(batch_size), "history": self.zeros(batch_size, extra)}

    def step(self, x, state):
        y, new = super().step(x, state)
        return y, {**new, "history": state["history"]}


# --- rows, repeats and writes ------------------------------------------------------------------------------------


@cheater("cheat-batch-statistics", "rows of a batch are not independent")
class BatchStatistics(Honest):
    def forward(self, x):
        return self.plain(x) - x.mean(0, keepdim=True)


@cheater("cheat-neighbour", "rows of a batch are not independent")
class Neighbour(Honest):
    def step(self, x, state):
        y, state = super().step(x, state)
        return y + 0.01 * x.roll(1, 0), state


@cheater("cheat-noise", "the same call twice")
class Noise(Honest):
    def forward(self, x):
        return self.plain(x) + 0.01 * torch.randn_like(x)


@cheater("cheat-counter", "the same call twice|called before")
class Counter(Honest):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.plain(x) + 0.01 * (self.calls > 1)


@cheater("cheat-last-call", "called before")
class LastCall(Honest):
    """Remembers the previous call's input, of whatever sequence."""

    last: Any = None

    def forward(self, x):
        carry = 0.0 if self.last is None or torch.equal(self.last, x) else 1.0
        y = self.plain(x) + carry
        self.last = x.detach().clone()
        return y


@cheater("cheat-grad-mode", "with gradients on")
class GradMode(Honest):
    def forward(self, x):
        return self.plain(x) * (1.0 if torch.is_grad_enabled() else 2.0)


@cheater("cheat-grad-mode-step", "with gradients on")
class GradModeStep(Honest):
    def forward(self, x):
        return Honest.prefill(_Plain(self), x, self.init_state(len(x)))[0]

    def step(self, x, state):
        y, state = super().step(x, state)
        return y * (1.0 if x.requires_grad else 2.0), state


@cheater("cheat-moving-weights", "parameters or buffers")
class MovingWeights(Honest):
    def forward(self, x):
        with torch.no_grad():
            self.w.weight.mul_(0.999)
        return self.plain(x)


@cheater("cheat-new-buffer", "parameters or buffers")
class NewBuffer(Honest):
    def forward(self, x):
        self.register_buffer("later", x.detach().mean((0, 1)))
        return self.plain(x)


@cheater("cheat-state-in-place", "step writes into the state")
class StateInPlace(Honest):
    def step(self, x, state):
        state["h"].mul_(0.9).add_(self.w(x))
        return self.v(state["h"]), state


@cheater("cheat-state-appended", "changes the state that it is given")
class StateAppended(Honest):
    def init_state(self, batch_size):
        return {**super().init_state(batch_size), "keys": []}

    def step(self, x, state):
        y, new = super().step(x, state)
        state["keys"].append(x)
        return y, {**new, "keys": state["keys"]}


@cheater("cheat-init-state", "init_state gives another state")
class InitState(Honest):
    last: Any = 0.0

    def init_state(self, batch_size):
        return {"h": super().init_state(batch_size)["h"] + self.last}

    def step(self, x, state):
        self.last = x.mean().item()
        return super().step(x, state)


# --- it does not work --------------------------------------------------------------------------------------------


@cheater("cheat-nan-gradient", "the gradient of .* is not finite")
class NanGradient(Honest):
    def forward(self, x):
        return self.plain(x) + (x - x).sqrt()


@cheater("cheat-shape-of-output", "an output of shape")
class OutputShape(Honest):
    def forward(self, x):
        return self.plain(x)[..., :-1]


@cheater("cheat-dtype-of-output", "gives torch.bfloat16")
class OutputDtype(Honest):
    def forward(self, x):
        return self.plain(x).bfloat16()


@cheater("cheat-no-tensor", "returns a list as output")
class NoTensor(Honest):
    def forward(self, x):
        return [self.plain(x)]


@cheater("cheat-no-state", "must return the pair")
class NoState(Honest):
    def step(self, x, state):
        return super().step(x, state)[0]

    def prefill(self, x, state):
        return x, state


@cheater("cheat-even-lengths", r"raises ValueError: even only \(cheaters.py:\d+\)")
class EvenLengths(Honest):
    def forward(self, x):
        if x.shape[1] % 2:
            raise ValueError("even only")
        return self.plain(x)


@cheater("cheat-input-error", "raises InputError: not mine")
class RaisesInputError(Honest):
    """The error of a wrong setting, raised where no setting is at fault."""

    def step(self, x, state):
        raise InputError("not mine")


@cheater("cheat-exit", "raises SystemExit")
class Exit(Honest):
    def forward(self, x):
        raise SystemExit(3)


@cheater("cheat-infinite", "not finite")
class Infinite(Honest):
    def forward(self, x):
        return self.plain(x) / (x.abs() > 1e-3 * (x.shape[1] > 60))


@cheater("cheat-broken-init", r"raises AttributeError: .* \(cheaters.py:\d+\)")
class BrokenInit(Honest):
    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        self.width = config.no_such_setting


@cheater("cheat-dies-elsewhere", "fresh process: it ended with exit code 3")
class DiesElsewhere(Honest):
    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        if "zoology-audit-" in os.getcwd():
            os._exit(3)


@cheater("cheat-missing-elsewhere", "fresh process: RuntimeError: not here")
class MissingElsewhere(Honest):
    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        if "zoology-audit-" in os.getcwd():
            raise RuntimeError("not here")
