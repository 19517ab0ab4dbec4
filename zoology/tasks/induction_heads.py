"""Induction heads: what followed a token earlier follows it again."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zoology.tasks.base import IGNORE, Batch, Preset, Task, Tokens, register_task
from zoology.tasks.limits import recall_bits

TRIGGER = 0
"""The special token. All others are the letters of the context."""


@register_task("induction-heads")
class InductionHeads(Task):
    """Induction heads: a special token stands somewhere in a random text and again at its end; name what followed it.

    Source: H3, arXiv:2212.14052; the circuit is that of Olsson et al., arXiv:2209.11895

    The context is `length` tokens, uniform over 1..vocab_size-1, one of which is replaced by the special token 0;
    every place but the last is equally likely. The whole is repeated `passes` times, then comes the special token once
    more, with the label. H3's language model task also scores the random text; only the answer is scored here.

    One token is all that a model has to keep, and it is marked: the task asks for a mechanism, not for capacity.
    """

    vocab_size: int = Field(20, ge=3, description="number of token ids, the special one included")
    length: int = Field(30, ge=2, description="tokens in the context, the special one included")
    passes: int = Field(1, ge=1, description="how often the context is shown")

    # A property in place of the field of Task; ClassVar takes the field away.
    seq_len: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: self.passes * self.length + 1, doc="Tokens in a sequence: the contexts and the question."
    )

    @property
    def slice_name(self) -> str:
        """The context's length, then what differs from the default: "L30", "L30-P2"."""
        return f"L{self.length}" + (f"-P{self.passes}" if self.passes != 1 else "")

    @property
    def context_length(self) -> int:
        """All but the question."""
        return self.passes * self.length

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled at the last position."""
        context = rng.integers(1, self.vocab_size, size=(n, self.length), dtype=np.int32)
        row, place = np.arange(n), rng.integers(self.length - 1, size=n)
        context[row, place] = TRIGGER
        tokens = np.full((n, self.seq_len), TRIGGER, dtype=np.int32)
        tokens[:, :-1] = np.tile(context, self.passes)
        labels = np.full((n, self.seq_len), IGNORE, dtype=np.int32)
        labels[:, -1] = context[row, place + 1]
        return Batch(tokens, labels)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): the token after the first special one, at the last."""
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        labels[:, -1] = tokens[np.arange(len(tokens)), (tokens == TRIGGER).argmax(axis=1) + 1]
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "key" (the special token), "value" (what follows it), "query" or "filler" for each token of (n, seq_len)."""
        special = tokens == TRIGGER
        roles = np.where(special, "key", "filler")
        roles[:, 1:][special[:, :-1]] = "value"
        roles[:, -1] = "query"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The information about the answer that the state must hold after the context, in bits.

        log2 M - h(p) - (1-p) log2(M-1), at least 0, with M = vocab_size - 1 equally likely answers: Fano's inequality
        for one answer. A bound for every model, and reached at p = 1 by one that keeps just the marked token.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        return recall_bits(accuracy, answers=1, choices=self.vocab_size - 1)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" is H3's: 5000 sequences of 30 tokens over 20 ids."""
        small = [cls(vocab_size=64, length=length) for length in (32, 64)]
        return {
            "small": Preset.same(small, 20_000),
            "paper": Preset(train=((cls(), 5000),), test=(cls(),)),
        }
