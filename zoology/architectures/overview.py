"""Every registered mixer at a glance: its paper, its dials, and what it is measured to keep. Nothing is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zoology.architectures.base import ContextMixer, build_mixer, mixers
from zoology.architectures.config import dials
from zoology.architectures.state import measure, total
from zoology.registry import paper

D_MODEL = 64
LENGTHS = (64, 256)


@dataclass(frozen=True)
class Overview:
    """One mixer with its default settings.

    Attributes:
        name, paper, dials: as registered; dials with the values that a sweep tries.
        state_bytes: (tokens, bytes of the state after them) of one sequence in float32. None: it cannot be run.
        parameters: how many. None: it cannot be built.
    """

    name: str
    paper: str
    dials: dict[str, tuple[Any, ...]]
    state_bytes: tuple[tuple[int, int], ...] | None
    parameters: int | None

    @property
    def bytes_per_token(self) -> float | None:
        """By how much the state grows with a token, on average from the shortest to the longest length."""
        if self.state_bytes is None:
            return None
        (short, before), (long, after) = self.state_bytes[0], self.state_bytes[-1]
        return (after - before) / (long - short)


def overview(d_model: int = D_MODEL, lengths: Sequence[int] = LENGTHS) -> list[Overview]:
    """An `Overview` of every mixer, measured at this width and after these numbers of tokens, two of them or more.

    A mixer, of a plugin perhaps, that raises is listed without what it could not give. The global generator is left as
    it was.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return [_look(name, d_model, lengths) for name in mixers]


def _look(name: str, d_model: int, lengths: Sequence[int]) -> Overview:
    parameters = state_bytes = None
    try:
        mixer = build_mixer(name, d_model).eval()
        parameters = sum(p.numel() for p in mixer.parameters())
        sizes = []
        for length in lengths:
            x = torch.randn(1, length, d_model)
            reads = isinstance(mixer, ContextMixer)
            _, state = mixer.read_context(x) if reads else mixer.prefill(x, mixer.init_state(1))
            sizes.append((length, total(measure(state))[1]))
        state_bytes = tuple(sizes)
    except Exception:  # whatever it is, `audit` says it; here the other mixers shall be listed
        pass
    cls = mixers.get(name)
    return Overview(name, paper(cls), dials(cls.Config), state_bytes, parameters)
