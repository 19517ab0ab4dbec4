"""What the MQAR family shares: a context of pairs, then slots of which some ask, drawn by a power law."""

from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from zoology.tasks.base import IGNORE, Batch, Task, Tokens
from zoology.tasks.rows import below, excluding, filled, power_slots


class SlottedRecall(Task):
    """A context that is shown `passes` times, then slots that hold each question once, and fillers elsewhere.

    Subclasses write `context_length`, `solve` and `_fill`, which writes a block of sequences.
    """

    num_pairs: int = Field(4, ge=1, description="key-value pairs in the context (N)")
    power: float = Field(0.01, gt=0, le=10, description="the law of the queries' slots: p(x) ~ x^(power-1)")
    fillers: Literal["strict", "papers", "zero"] = Field("strict", description="what stands where nothing is asked")
    passes: int = Field(1, ge=1, description="how often the context is shown")

    @property
    def slice_name(self) -> str:
        """Length and sizes, then what differs from the default: "T64-N4", "T128-N8-P2-papers"."""
        name = f"T{self.seq_len}-N{self.num_pairs}{self._more_sizes}"
        name += f"-P{self.passes}" if self.passes != 1 else ""
        name += f"-a{self.power:g}" if self.power != type(self).model_fields["power"].default else ""
        return name + (f"-{self.fillers}" if self.fillers != "strict" else "")

    @property
    def _more_sizes(self) -> str:
        """What `slice_name` says after the number of pairs."""
        return ""

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len) with the values at the queries as labels, `IGNORE` elsewhere."""
        return filled(partial(self._fill, rng), n, self.seq_len, size=min(4096, max(1, 2**19 // self.seq_len)))

    @property
    def _slots(self) -> int:
        """Slots after the context, each of which can hold a question: one at each even offset."""
        return (self.seq_len - self.context_length) // 2

    def _ask(
        self, rng: np.random.Generator, tokens: Tokens, labels: Tokens, keys: Tokens, answers: Tokens, first_value: int
    ) -> None:
        """Write what comes after the context: each key in a slot of its own with its answer as label, and fillers.

        Args:
            tokens, labels: what comes after the context, a slot at each even offset.
            keys, answers: (n, num_pairs), in the order in which their slots are drawn.
            first_value: keys, and strict fillers, are below it.
        """
        n, slots = len(tokens), self._slots
        # The token of each slot and, in the upper half of the number, its label: both are moved at once.
        held = np.empty((n, slots), np.int64)
        if self.num_pairs < slots:  # or every slot holds a question
            held[:] = self._others(rng, keys, slots, first_value)
            held += IGNORE << 32
        asked = power_slots(rng, n, self.num_pairs, slots, self.power)
        asked += slots * np.arange(n)[:, None]
        held.ravel()[asked.ravel()] = ((answers.astype(np.int64) << 32) | keys).ravel()
        tokens[:, 0::2] = held.astype(np.int32)  # the lower half
        labels[:, 0::2] = held >> 32
        if self.fillers == "papers":
            tokens[:, 1::2] = below(rng, self.vocab_size, (n, slots))
        else:
            tokens[:, 1::2] = self._others(rng, keys, slots, first_value)

    def _others(self, rng: np.random.Generator, keys: Tokens, count: int, first_value: int) -> Tokens | int:
        """(n, count) fillers that are none of the keys (n, k) of their row; strict ones are below `first_value`."""
        if self.fillers == "zero":
            return 0
        return excluding(rng, keys, count, first_value if self.fillers == "strict" else self.vocab_size)

    def _fill(self, rng: np.random.Generator, tokens: Tokens, labels: Tokens) -> None:
        """Write a block of sequences and labels into arrays, labels being all `IGNORE` before."""
        raise NotImplementedError
