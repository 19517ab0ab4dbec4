"""What a mixer is, what an architecture is, and how either gets its name.

A mixer is one sequence-mixing layer, a plain `nn.Module` over (batch, time, d_model). An architecture is a stack of
mixers made from dials. A registered mixer gets an architecture of the same name for nothing: the papers' recipe, a
short convolution and then the mixer.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from pydantic import ValidationError, create_model
from torch import Tensor, nn

from zoology.architectures.config import MixerConfig, dials
from zoology.registry import InputError, Registry

State = Any
"""What a mixer keeps between tokens: tensors, in (nested) NamedTuples, dicts, lists or tuples."""


class Mixer(nn.Module):
    """One sequence-mixing layer. Subclasses write `__init__(d_model, config)`, `init_state` and `step`.

    `forward` and `prefill` scan `step` unless a subclass has something faster; the audit checks that all three agree.

    State is measured, never declared. A tensor of the state is reported as part of the KV cache where its name in the
    NamedTuple or dict is `keys` or `values`, as convolution where its name starts with `conv`, and as recurrent
    otherwise.
    """

    Config: ClassVar[type[MixerConfig]] = MixerConfig

    def init_state(self, batch_size: int) -> State:
        """The state before the first token, on the parameters' device and in their dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define init_state(batch_size)")

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token: x (batch, d_model), state -> y (batch, d_model), state. Must not write into either argument."""
        raise NotImplementedError(f"{type(self).__name__} must define step(x, state)")

    def forward(self, x: Tensor) -> Tensor:
        """A whole sequence from its beginning: (batch, time, d_model) -> (batch, time, d_model)."""
        return self.prefill(x, self.init_state(x.shape[0]))[0]

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """A piece of a sequence: x (batch, time, d_model), state -> y (batch, time, d_model), state."""
        outputs = []
        for t in range(x.shape[1]):
            y, state = self.step(x[:, t], state)
            outputs.append(y)
        return (torch.stack(outputs, dim=1) if outputs else torch.empty_like(x)), state

    def zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros on this mixer's device, in its parameters' dtype unless another is given."""
        like = next(self.parameters(), torch.empty(0))
        return torch.zeros(*shape, device=like.device, dtype=dtype or like.dtype)


class ContextMixer(Mixer):
    """A mixer that reads its context whole, where every output may depend on all of it, and goes on token by token.

    Subclasses write `read_context` beside what a mixer writes. From the state that it leaves, `prefill` and `step` are
    causal, as every mixer's; from `init_state` they go on after a context of no tokens. A model tells such a mixer, and
    no other, where the context ends. The audit checks that nothing after it is seen early.
    """

    def read_context(self, x: Tensor) -> tuple[Tensor, State]:
        """A context, at least one token: x (batch, time, d_model) -> y (batch, time, d_model), the state after it."""
        raise NotImplementedError(f"{type(self).__name__} must define read_context(x)")

    def forward(self, x: Tensor, context_length: int) -> Tensor:  # type: ignore[override]
        """A sequence whose first `context_length` tokens are the context: (batch, time, d_model) -> the same shape."""
        y, state = self.read_context(x[:, :context_length])
        if context_length >= x.shape[1]:
            return y
        return torch.cat((y, self.prefill(x[:, context_length:], state)[0]), dim=1)


class Layer(NamedTuple):
    """One layer of a stack: the name of a mixer, and those of its settings that differ from its defaults."""

    mixer: str
    settings: dict[str, Any] = {}


class Architecture:
    """A stack of mixers made from dials. Subclasses give a `Config` and `layers`."""

    Config: ClassVar[type[MixerConfig]] = MixerConfig

    @classmethod
    def layers(cls, config: Any) -> tuple[Layer, ...]:
        """The stack for these dials, from the embedding to the head."""
        raise NotImplementedError


M = TypeVar("M", bound=type[Mixer])
A = TypeVar("A", bound=type[Architecture])

mixers: Registry[type[Mixer]] = Registry("mixer")
architectures: Registry[type[Architecture]] = Registry("architecture")


def register_mixer(name: str) -> Callable[[M], M]:
    """A class decorator that makes a mixer known under `name` (kebab-case), and an architecture with it.

    Raises:
        InputError: the name is taken or malformed, or the class is no usable mixer.
    """

    def add(cls: M) -> M:
        if not (isinstance(cls, type) and issubclass(cls, Mixer)):
            raise InputError(f"mixer {name!r} must be a subclass of zoology.Mixer")
        if not (isinstance(cls.Config, type) and issubclass(cls.Config, MixerConfig)):
            raise InputError(f"mixer {name!r}: its Config must be a subclass of zoology.MixerConfig")
        base = ContextMixer if issubclass(cls, ContextMixer) else Mixer
        for method in ("init_state", "step", *(["read_context"] if base is ContextMixer else [])):
            if getattr(cls, method) is getattr(base, method):
                raise InputError(f"mixer {name!r} does not define {method}")
        if name in architectures:
            raise InputError(f"mixer name {name!r} is taken by an architecture: choose another")
        return mixers.register(name)(cls)  # type: ignore[return-value]

    return add


def register_architecture(name: str) -> Callable[[A], A]:
    """A class decorator that makes a stack of mixers known under `name` (kebab-case).

    Raises:
        InputError: the name is taken or malformed, or the class is no architecture.
    """

    def add(cls: A) -> A:
        if not (isinstance(cls, type) and issubclass(cls, Architecture)):
            raise InputError(f"architecture {name!r} must be a subclass of zoology.Architecture")
        if name in mixers:
            raise InputError(f"architecture name {name!r} is taken by a mixer: choose another")
        return architectures.register(name)(cls)  # type: ignore[return-value]

    return add


def build_mixer(name: str, d_model: int, settings: dict[str, Any] | None = None) -> Mixer:
    """A mixer by its name, its settings checked.

    Raises:
        InputError: the name or a setting is unknown, or a value (or its combination with d_model) is not allowed.
    """
    cls = mixers.get(name)
    try:
        config = cls.Config(**(settings or {}))
    except ValidationError as error:
        raise InputError(f"{name}: {describe(error)}") from error
    try:
        return cls(d_model, config)  # type: ignore[call-arg]
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def describe(error: ValidationError) -> str:
    """A validation error as one line: each setting, what is wrong with it, and what was given."""
    lines = []
    for e in error.errors():
        where = ".".join(str(part) for part in e["loc"])
        if e["type"] == "extra_forbidden":
            lines.append(f"unknown setting {where!r}")
        else:
            lines.append(f"{where} = {e['input']!r}: {e['msg'][:1].lower()}{e['msg'][1:]}")
    return "; ".join(lines)


def get_architecture(name: str) -> type[Architecture]:
    """An architecture by its name: a registered one, the default one of a mixer, or a stack spelled `a+b+c`.

    Raises:
        InputError: the name, or a part of the stack, is unknown.
    """
    if name in architectures:
        return architectures.get(name)
    if name in mixers:
        return stack(("short-conv", name), own=name)
    if "+" in name:
        parts = tuple(part.strip() for part in name.split("+"))
        for part in parts:
            mixers.get(part)  # an unknown one is an error that offers the nearest
        return stack(parts)
    known = Registry[Any]("architecture")
    known._entries = dict.fromkeys({*architectures, *mixers})
    return known.get(name)


def mixers_of(names: Sequence[str], d_model: int = 16) -> list[tuple[str, int, dict[str, Any]]]:
    """(mixer, d_model, settings) of every mixer in these architectures with their default dials; all mixers for none.

    Raises:
        InputError: a name is unknown.
    """
    if not names:
        return [(name, d_model, {}) for name in mixers]
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        architecture = get_architecture(name)
        layers = [Layer(name)] if name in mixers else architecture.layers(architecture.Config())
        for layer in layers:
            found.setdefault(layer.mixer, layer.settings)
    return [(name, d_model, settings) for name, settings in found.items()]


def stack(names: tuple[str, ...], own: str | None = None) -> type[Architecture]:
    """An architecture that stacks mixers, each taking those of the settings that it has.

    Args:
        names: the mixers, from the embedding to the head.
        own: the mixer whose settings are the architecture's. All of them where it is None.
    """
    owners = [own] if own else list(dict.fromkeys(names))
    fields: dict[str, Any] = {}
    for owner in owners:
        for key, field in mixers.get(owner).Config.model_fields.items():
            fields.setdefault(key, (field.annotation, field))
    config_class = create_model("StackConfig", __base__=MixerConfig, **fields)

    class Stack(Architecture):
        Config = config_class

        @classmethod
        def layers(cls, config: Any) -> tuple[Layer, ...]:
            given = config.model_dump(include=set(dials(cls.Config)) | config.model_fields_set)
            return tuple(
                Layer(
                    name,
                    {k: v for k, v in given.items() if k in mixers.get(name).Config.model_fields}
                    if name in owners
                    else {},
                )
                for name in names
            )

    Stack.__doc__ = mixers.get(own).__doc__ if own else f"The stack {' + '.join(names)}."
    return Stack
