"""Needles in a haystack, after RULER: keys with values hidden among other tokens, over tokens in place of words."""

from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoology.tasks.base import IGNORE, Batch, Preset, Task, Tokens, register_task
from zoology.tasks.limits import recall_bits
from zoology.tasks.rows import blocks, distinct, filled, places

QUESTION = 0
"""Stands before the keys that are asked for."""


class Needles(Task):
    """Base of the three tasks: `key value` needles in a haystack, then keys, each asking for its values in order.

    Behind the question mark 0 the vocabulary is cut into keys, values and hay: with part = (vocab_size - 1) // 3 these
    are 1..part, the next `part` ids, and all above.

    - The context is `length` tokens of hay, uniform and independent, in which `keys * values` needles of two tokens
      stand in place of hay: a key and one of its values. Keys are different, and each has `values` needles; values are
      uniform and independent. Needles do not overlap, and all their places and orders are equally likely. The context
      is shown `passes` times.
    - Then come the question mark and `queries` of the keys, in random order. A key is labelled with the value of its
      first needle; that value is the next token, if the key has a further one, labelled with the value of the second
      needle, and so on. RULER takes the values in any order; the order in which they were shown makes one answer right.

    With `length = 2 keys values` there is no hay, as in RULER's harder settings, where needles hide among needles.
    """

    vocab_size: int = Field(1024, ge=7, description="number of token ids: question mark, keys, values, hay")
    length: int = Field(128, ge=2, description="tokens in the haystack, needles included")
    keys: int = Field(4, ge=1, description="different keys in the haystack")
    values: int = Field(1, ge=1, description="needles, and so values, of each key")
    queries: int = Field(1, ge=1, description="keys that are asked for")
    passes: int = Field(1, ge=1, description="how often the haystack is shown")

    # A property in place of the field of Task; ClassVar takes the field away.
    seq_len: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: self.passes * self.length + 1 + self.queries * self.values,
        doc="Tokens in a sequence: haystacks, question mark, and for each query the key and all values but the last.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "Needles":
        if self.keys > self._part:
            raise ValueError(
                f"keys = {self.keys}: vocab_size = {self.vocab_size} has {self._part} different keys; use at most that "
                f"many or a vocab_size of at least {3 * self.keys + 1}"
            )
        if 2 * self.keys * self.values > self.length:
            raise ValueError(
                f"keys = {self.keys} and values = {self.values}: these needles need {2 * self.keys * self.values} "
                f"tokens, and length = {self.length}"
            )
        if self.queries > self.keys:
            raise ValueError(f"queries = {self.queries}: must be at most keys = {self.keys}")
        return self

    @property
    def _part(self) -> int:
        return (self.vocab_size - 1) // 3

    @property
    def slice_name(self) -> str:
        """Haystack, keys, values and queries, then what differs from the default: "L128-K4-V1-Q1-P2"."""
        name = f"L{self.length}-K{self.keys}-V{self.values}-Q{self.queries}"
        return name + (f"-P{self.passes}" if self.passes != 1 else "")

    @property
    def context_length(self) -> int:
        """The haystacks."""
        return self.passes * self.length

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled behind the question mark."""
        return filled(partial(self._fill, rng), n, self.seq_len, token=QUESTION, size=max(1, 2**18 // self.length))

    def _fill(self, rng: np.random.Generator, tokens: Tokens, labels: Tokens) -> None:
        """Write a block of sequences over question marks, and its labels."""
        n, part, shape = len(tokens), self._part, (len(tokens), self.keys, self.values)
        keys = 1 + distinct(rng, n, self.keys, part)
        values = 1 + part + rng.integers(part, size=shape, dtype=np.int32)
        start = places(rng, n, self.keys * self.values, 2, self.length).reshape(shape)
        start.sort(axis=2)  # a key's values are in the order of their needles
        hay = rng.integers(1 + 2 * part, self.vocab_size, size=(n, self.length), dtype=np.int32)
        row = np.arange(n)[:, None, None]
        hay[row, start], hay[row, start + 1] = keys[:, :, None], values
        tokens[:, : self.context_length] = np.tile(hay, self.passes)

        chosen = distinct(rng, n, self.queries, self.keys)
        answers = np.take_along_axis(values, chosen[:, :, None], axis=1)
        asked = np.take_along_axis(keys, chosen, axis=1)[:, :, None]
        tokens[:, self.context_length + 1 :] = np.concatenate([asked, answers[:, :, :-1]], axis=2).reshape(n, -1)
        labels[:, self.context_length + 1 :] = answers.reshape(n, -1)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): what followed each asked key, wherever it stands in the first haystack."""
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        for at in range(self.context_length + 1, self.seq_len, self.values):
            for block in blocks(len(tokens)):
                hay = tokens[block, : self.length]
                column = np.nonzero(hay == tokens[block, at : at + 1])[1].reshape(-1, self.values)  # sorted in each row
                labels[block, at : at + self.values] = np.take_along_axis(hay, column + 1, axis=1)
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "key", "value", "filler" (hay), "separator" (question mark) or "query" for each token of (n, seq_len)."""
        roles = np.select(
            [tokens == QUESTION, tokens <= self._part, tokens <= 2 * self._part],
            ["separator", "key", "value"],
            "filler",
        )
        roles[:, self.context_length + 1 :] = "query"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The information about the values that the state must hold after the context, in bits.

        K [log2 M - h(p) - (1-p) log2(M-1)], at least 0, with K = keys * values needles and M values to choose from: the
        entropy of all values less what Fano's inequality leaves open, a key's values before being known at each answer.
        Few queries suffice for it: the state was there before the keys were drawn, so any key is answered as well on
        average, and what was asked for earlier can only help. A bound for every model.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        return recall_bits(accuracy, answers=self.keys * self.values, choices=self._part)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" has the paper's number of needles in haystacks of 4096 to 32768 tokens.

        RULER asks pretrained models and trains none: the training slices are ours.
        """
        small = [cls(vocab_size=97, length=length) for length in (16, 32, 64)]
        return {
            "small": Preset.same(small, 15_000),
            "paper": Preset(
                train=tuple((cls(vocab_size=8192, length=length), 10_000) for length in (1024, 4096)),
                test=tuple(cls(vocab_size=8192, length=length) for length in (4096, 8192, 16384, 32768)),
            ),
        }


@register_task("needle-multi-key")
class NeedleMultiKey(Needles):
    """Multi-key needles: several keys with a value each are hidden in a haystack; one key comes again: name its value.

    Source: RULER, arXiv:2404.06654

    `hay k1 v1 hay k2 v2 hay ? k2` with label v2 at the last token; `Needles` has the vocabulary and the law. Only one
    needle matters, which is known too late: the others must be kept as well.
    """


@register_task("needle-multi-value")
class NeedleMultiValue(Needles):
    """Multi-value needles: a key comes in a haystack several times, with a value each; name all, in the order shown.

    Source: RULER, arXiv:2404.06654

    `hay k v1 hay k v2 hay ? k v1` with the labels v1 v2 at the last two tokens; `Needles` has the vocabulary and the
    law. More keys than one are distractors, each with as many values.
    """

    keys: int = Field(1, ge=1, description="different keys in the haystack")
    values: int = Field(4, ge=1, description="needles, and so values, of each key")

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """As those of `Needles`, but "small" has two or three values.

        There attention reaches 97 % at d_model = 32 with rotary positions, and 73 % without: of a key's values nothing
        but the place tells which comes first.
        """
        small = [cls(vocab_size=97, length=length, values=values) for length, values in ((16, 2), (32, 2), (32, 3))]
        return super().presets() | {"small": Preset.same(small, 15_000)}


@register_task("needle-multi-query")
class NeedleMultiQuery(Needles):
    """Multi-query needles: keys with a value each are hidden in a haystack; several come again, each for its value.

    Source: RULER, arXiv:2404.06654

    `hay k1 v1 hay k2 v2 hay ? k2 k1` with the labels v2 v1 at the last two tokens; `Needles` has the vocabulary and the
    law. Keys that are not asked for are distractors.
    """

    queries: int = Field(4, ge=1, description="keys that are asked for")
