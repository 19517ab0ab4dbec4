"""Associative recall by two keys together, neither of which tells the value alone."""

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoology.tasks.base import IGNORE, Preset, Tokens, register_task
from zoology.tasks.limits import distinct_entropy, recall_bits
from zoology.tasks.rows import distinct, look_up, power_slots
from zoology.tasks.slotted import SlottedRecall


@register_task("compositional-mqar")
class CompositionalMqar(SlottedRecall):
    """Recall by two keys: after triples `first second value`, answer each pair of keys that comes again with its value.

    Source: HazyResearch/zoology (compositional_mqar), after Zoology, arXiv:2312.04927

    With V = vocab_size, W = V // 3 (rounded down), N = num_pairs = g^2 and T = seq_len, a sequence is

    - the context: g different first keys from 1..W-1 and g different second keys from W..2W-1, every one of the first
      with every one of the second, in random order, each combination with a value of its own from 2W..V-1, as
      `[first second value]` x N; the whole repeated `passes` times. So every key comes with g different values, and
      either key alone leaves g answers open;
    - the question part, the rest: each combination once more, in a slot of three tokens `[first second filler]`,
      labelled at the second key with its value; fillers elsewhere. The slots x = 1, 2, ... are drawn without
      replacement with p(x) ~ x^(power-1), as in `mqar`.

    A slot that begins with two keys of the context is a query. The fillers are

    - `strict`: uniform over 0 and the keys that the sequence does not use, so that they tell nothing of its values;
    - `papers`: uniform over the whole vocabulary, except that a slot without a query never begins with a first key of
      the sequence (in the public generator it may, and then is a query without a label if a second key follows, which
      at V = 8192 hardly ever happens);
    - `zero`: all 0.
    """

    num_pairs: int = Field(4, ge=4, description="pairs of keys in the context (N), the square of a whole number")

    @model_validator(mode="after")
    def _fits(self) -> "CompositionalMqar":
        n, g, t, v = self.num_pairs, self._side, self.seq_len, self.vocab_size
        if g * g != n:
            raise ValueError(
                f"num_pairs = {n}: must be a square, as every first key comes with every second; the nearest are "
                f"{g * g} and {(g + 1) ** 2}"
            )
        if g > self._third - 1:
            raise ValueError(
                f"num_pairs = {n}: vocab_size = {v} has {self._third - 1} different first keys, and {g} are needed; "
                f"use at least {3 * (g + 1)}"
            )
        if n > self._values:
            raise ValueError(
                f"num_pairs = {n}: vocab_size = {v} has {self._values} different values; use about {3 * n}"
            )
        need = self.context_length + 3 * n
        if need > t:
            raise ValueError(
                f"num_pairs = {n}: with passes = {self.passes} these need {need} tokens, and seq_len = {t}"
            )
        return self

    @property
    def context_length(self) -> int:
        """All passes of the triples: 3 N passes."""
        return 3 * self.num_pairs * self.passes

    @property
    def _side(self) -> int:
        """How many first keys, and second keys, there are (g)."""
        return math.isqrt(self.num_pairs)

    @property
    def _third(self) -> int:
        return self.vocab_size // 3

    @property
    def _values(self) -> int:
        """How many values the vocabulary has."""
        return self.vocab_size - 2 * self._third

    @property
    def _slots(self) -> int:
        """Whole slots of three tokens after the context."""
        return (self.seq_len - self.context_length) // 3

    def _fill(self, rng: np.random.Generator, tokens: Tokens, labels: Tokens) -> None:
        """Write a block of sequences and labels into arrays, labels being all `IGNORE` before."""
        n, pairs, side, third = len(tokens), self.num_pairs, self._side, self._third
        first = 1 + distinct(rng, n, side, third - 1)
        second = third + distinct(rng, n, side, third)
        values = 2 * third + distinct(rng, n, pairs, self._values)
        cell = distinct(rng, n, pairs, pairs)  # the combinations in the order in which they are shown
        firsts = np.take_along_axis(first, cell // side, axis=1)
        seconds = np.take_along_axis(second, cell % side, axis=1)
        triples = np.stack([firsts, seconds, values], axis=2).reshape(n, -1)
        tokens[:, : self.context_length] = np.tile(triples, self.passes)

        question, answers = tokens[:, self.context_length :], labels[:, self.context_length :]  # views
        if self.fillers == "papers":
            question[:] = rng.integers(self.vocab_size, size=question.shape, dtype=np.int32)
            question[:, 0 : 3 * self._slots : 3] = self._others(rng, first, self._slots, 2 * third)
        else:
            question[:] = self._others(rng, np.concatenate([first, second], axis=1), question.shape[1], 2 * third)
        offsets = 3 * power_slots(rng, n, pairs, self._slots, self.power)
        np.put_along_axis(question, offsets, firsts, axis=1)
        np.put_along_axis(question, offsets + 1, seconds, axis=1)
        np.put_along_axis(answers, offsets + 1, values, axis=1)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): a dictionary from pairs of keys to values, asked with every slot after the context."""
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        first, second, values = (tokens[:, i : 3 * self.num_pairs : 3] for i in range(3))
        end = self.context_length + 3 * self._slots
        asked = tokens[:, self.context_length : end : 3], tokens[:, self.context_length + 1 : end : 3]
        # Keys are numbered by where the context shows them, so that a pair of keys is one number below (N + 1)^2.
        number, unknown = np.tile(np.arange(self.num_pairs, dtype=np.int32), (len(tokens), 1)), self.num_pairs
        base = unknown + 1
        shown_code, asked_code = (
            look_up(first, number, a, self.vocab_size, unknown) * base
            + look_up(second, number, b, self.vocab_size, unknown)
            for a, b in ((first, second), asked)
        )
        answers = look_up(shown_code, values, asked_code, base * base, IGNORE)
        labels[:, self.context_length + 1 : end : 3] = answers
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """What each token of (n, seq_len) is.

        "first-key", "second-key", "value", "asked" (the first key of a query), "query" (its second), or "filler".
        """
        answered = self.solve(tokens) != IGNORE
        roles = np.where(answered, "query", "filler").astype("<U10")
        roles[:, :-1][answered[:, 1:]] = "asked"
        roles[:, : self.context_length] = ["first-key", "second-key", "value"] * (self.num_pairs * self.passes)
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The least state at the end of the context, in bits, of any model that is right this often.

        Given the keys and their order, the N values are different ones of V - 2W, every ordered choice equally likely,
        and each is asked once: the bound of `mqar` with N pairs and that many values.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        entropy = distinct_entropy(self.num_pairs, self._values)
        return recall_bits(accuracy, answers=self.num_pairs, choices=self._values, entropy=entropy)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" is the mix of the public repository."""
        small = [cls(vocab_size=192, seq_len=t, num_pairs=n) for t, n in ((48, 4), (64, 9), (112, 16))]

        def paper(seq_len: int, num_pairs: int) -> CompositionalMqar:
            return cls(seq_len=seq_len, num_pairs=num_pairs, fillers="papers")

        trained = {(64, 4): 100_000, (128, 9): 20_000, (256, 16): 20_000, (256, 25): 20_000, (256, 36): 20_000}
        tested = [(64, 4), (64, 9), (128, 16), (256, 36), (512, 64), (1024, 144), (2048, 256)]
        return {
            "small": Preset.same(small, 15_000),
            "paper": Preset(
                train=tuple((paper(*shape), n) for shape, n in trained.items()),
                test=tuple(paper(*shape) for shape in tested),
            ),
        }
