"""What was shown, and in which order: recognition of single items, and the order of two stretches."""

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoology.tasks.base import IGNORE, Batch, Preset, Task, Tokens, register_task
from zoology.tasks.limits import check_accuracy, distinct_entropy, recall_bits
from zoology.tasks.rows import blocks, distinct

SEPARATOR, QUESTION, ONE, TWO = range(4)
"""Reserved tokens of `sequence-order`: ONE and TWO are its answers."""
NO, YES = 1, 2
"""Answers of `recognition`, beside the separator."""


@register_task("sequence-order")
class SequenceOrder(Task):
    """Sequence order: a text is shown, then two of its segments; which came first, the one named first (2) or not (3)?

    Source: Sequence Order Recall Tasks, arXiv:2410.08133

    The text is `length` different tokens, uniform over 4..vocab_size-1, so that every segment stands in it once. With
    separator 0 and question 1 a sequence is `text | one | two ?`, the text and its separator `passes` times. The two
    segments are `segment` tokens each and do not overlap; every pair of places and both orders are equally likely. The
    label, at the question, is 2 if the one named first came first, else 3.
    """

    vocab_size: int = Field(1024, ge=6, description="number of token ids, four of them reserved")
    length: int = Field(64, ge=2, description="tokens in the text")
    segment: int = Field(4, ge=1, description="tokens in each of the two segments")
    passes: int = Field(1, ge=1, description="how often the text is shown")

    # A property in place of the field of Task; ClassVar takes the field away.
    seq_len: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: self.passes * (self.length + 1) + 2 * (self.segment + 1),
        doc="Tokens in a sequence: texts and segments, each with the mark that follows it.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "SequenceOrder":
        if 2 * self.segment > self.length:
            raise ValueError(
                f"segment = {self.segment}: two of them need {2 * self.segment} tokens, and length = {self.length}; "
                f"use at most {self.length // 2}"
            )
        if self.length > self.vocab_size - 4:
            raise ValueError(
                f"length = {self.length}: vocab_size = {self.vocab_size} has {self.vocab_size - 4} different tokens "
                f"for the text; use a vocab_size of at least {self.length + 4}"
            )
        return self

    @property
    def slice_name(self) -> str:
        """Text and segment, then what differs from the default: "L64-S4", "L64-S4-P2"."""
        return f"L{self.length}-S{self.segment}" + (f"-P{self.passes}" if self.passes != 1 else "")

    @property
    def context_length(self) -> int:
        """The texts with their separators."""
        return self.passes * (self.length + 1)

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled at the last position."""
        batch = Batch(
            np.full((n, self.seq_len), SEPARATOR, dtype=np.int32), np.full((n, self.seq_len), IGNORE, dtype=np.int32)
        )
        for block in blocks(n):
            batch.labels[block, -1] = self._fill(rng, batch.tokens[block])
        return batch

    def _fill(self, rng: np.random.Generator, tokens: Tokens) -> Tokens:
        """Write a block of sequences over separators; the answers (n,)."""
        n, s = len(tokens), self.segment
        text = 4 + distinct(rng, n, self.length, self.vocab_size - 4)
        tokens[:, : self.context_length] = np.tile(np.pad(text, ((0, 0), (0, 1))), self.passes)
        # Two different numbers below length - 2 (s-1), in either order; the later segment is moved on by s-1.
        start = distinct(rng, n, 2, self.length - 2 * (s - 1)).astype(np.int64)
        start += (s - 1) * (start > start[:, ::-1])
        for i in range(2):
            place = start[:, i : i + 1] + np.arange(s)
            tokens[:, self.context_length + i * (s + 1) :][:, :s] = np.take_along_axis(text, place, axis=1)
        tokens[:, -1] = QUESTION
        return np.where(start[:, 0] < start[:, 1], ONE, TWO).astype(np.int32)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): where the first token of each segment stands in the text as first shown."""
        text, asked = tokens[:, : self.length], tokens[:, self.context_length :]
        one, two = (
            (text == asked[:, i : i + 1]).argmax(axis=1) for i in (0, self.segment + 1)
        )  # tokens differ, so the first tells the segment
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        labels[:, -1] = np.where(one < two, ONE, TWO)
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "value" (the text), "separator", "key" (in a segment) or "query" for each token of (n, seq_len)."""
        roles = np.where(tokens == SEPARATOR, "separator", "value")
        roles[:, self.context_length :][tokens[:, self.context_length :] != SEPARATOR] = "key"
        roles[:, -1] = "query"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float | None:
        """The least state after the context, in bits: log2 floor(L/S)! for a model that never errs.

        Cut a text of L tokens into blocks of S: any two orders of the same blocks answer some pair of them differently,
        so each order needs a state of its own. That leaves out which tokens there were, which the segments give back.

        With S = 1 and accuracy p the information of the state is at least log2 L! - C(L, 2) h(p): the orders of all
        C(L, 2) pairs make the text's order known, and Fano's inequality leaves h(p) of each open.

        Returns:
            None below accuracy 1 with S > 1, where no bound is known.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        check_accuracy(accuracy)
        if accuracy == 1 or self.segment == 1:
            blocks_of_text = self.length // self.segment
            orders = distinct_entropy(blocks_of_text, blocks_of_text)
            return recall_bits(accuracy, answers=math.comb(self.length, 2), choices=2, entropy=orders)
        return None

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" has segments of 20 and 50 tokens in texts of 250, 1000 and 2500.

        The paper's Book-SORT has these lengths in words (and texts of 10 000 and 20 000), asks pretrained models and
        trains none: that a word is one token, and the training slices, are ours.

        On "small" a short convolution and one attention reach 58 % at d_model = 32, with rotary positions too: at the
        question both segments must have been looked for, and what was found be compared, which are two steps. The
        stack `short-conv+attention+short-conv+attention` reaches 98 % with rotary positions, and 65 % without.
        """
        small = [cls(vocab_size=20, length=length, segment=1) for length in (4, 8)]
        paper = {
            (length, segment): cls(vocab_size=8192, length=length, segment=segment)
            for length in (250, 1000, 2500)
            for segment in (20, 50)
        }
        return {
            "small": Preset.same(small, 40_000),
            "paper": Preset(
                train=tuple((paper[250, segment], 40_000) for segment in (20, 50)), test=tuple(paper.values())
            ),
        }


@register_task("recognition")
class Recognition(Task):
    """Recognition: items are shown, then others and some of them again; say of each if it was shown: yes (2), no (1).

    Source: Exact and approximate membership testers, doi:10.1145/800133.804332

    The items are `length` different tokens, uniform over the U = vocab_size - 3 from 3 on, the whole with a separator 0
    behind it shown `passes` times. Then come `queries` different probes, each labelled where it stands with 2 (yes) or
    1 (no): one of the items or another token, with probability 1/2 each, uniform among those. As probes differ, the
    probes alone tell nothing about the answers.
    """

    vocab_size: int = Field(1024, ge=5, description="number of token ids, three of them reserved")
    length: int = Field(32, ge=1, description="items shown")
    queries: int = Field(16, ge=1, description="items asked about")
    passes: int = Field(1, ge=1, description="how often the items are shown")

    # A property in place of the field of Task; ClassVar takes the field away.
    seq_len: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: self.passes * (self.length + 1) + self.queries,
        doc="Tokens in a sequence: items and separator each time, then the probes.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "Recognition":
        if self.queries > self.length:
            raise ValueError(
                f"queries = {self.queries}: must be at most length = {self.length}, as all probes may have been shown"
            )
        if self.length + self.queries > self._items:
            raise ValueError(
                f"length = {self.length} and queries = {self.queries}: vocab_size = {self.vocab_size} has "
                f"{self._items} items, shown ones and others; use at least {self.length + self.queries + 3}"
            )
        return self

    @property
    def _items(self) -> int:
        return self.vocab_size - 3

    @property
    def slice_name(self) -> str:
        """Items and probes, then what differs from the default: "L32-Q16", "L32-Q16-P2"."""
        return f"L{self.length}-Q{self.queries}" + (f"-P{self.passes}" if self.passes != 1 else "")

    @property
    def context_length(self) -> int:
        """The items with their separators."""
        return self.passes * (self.length + 1)

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled at the last `queries` positions."""
        batch = Batch(np.empty((n, self.seq_len), dtype=np.int32), np.full((n, self.seq_len), IGNORE, dtype=np.int32))
        for block in blocks(n):
            rows = block.stop - block.start
            drawn = 3 + distinct(rng, rows, self.length + self.queries, self._items)
            items, new = drawn[:, : self.length], drawn[:, self.length :]
            old = np.take_along_axis(items, distinct(rng, rows, self.queries, self.length), axis=1)
            shown = rng.integers(2, size=new.shape, dtype=bool)
            marked = np.pad(items, ((0, 0), (0, 1)), constant_values=SEPARATOR)
            batch.tokens[block, : self.context_length] = np.tile(marked, self.passes)
            batch.tokens[block, self.context_length :] = np.where(shown, old, new)
            batch.labels[block, self.context_length :] = np.where(shown, YES, NO)
        return batch

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): each probe compared with every item as first shown."""
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        items = tokens[:, : self.length]
        for i in range(self.context_length, self.seq_len):
            labels[:, i] = np.where((items == tokens[:, i : i + 1]).any(axis=1), YES, NO)
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "key" (an item), "separator" or "query" for each token of (n, seq_len)."""
        roles = np.where(tokens == SEPARATOR, "separator", "query")
        roles[:, : self.context_length][tokens[:, : self.context_length] != SEPARATOR] = "key"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The information about the set that the state must hold after the context, in bits.

        log2 C(U, L) for a model that never errs. If the first probe is right with probability p it is at least
        log2 C(U, L) - U [h(L/U) - min I(a, b)], at least 0. Here a and b are the chances that a shown item is denied
        and that another is affirmed, with (a + b) / 2 = 1 - p as probes are even, and I(a, b) what the answer for an
        item drawn from all U tells about whether it was shown; the minimum is over the a and b that there can be. The
        bracket is the most that an answer leaves open about its item, so U times it is no less than what the state
        leaves open of the set. Where only other items may be mistaken (a = 0) it is near the L log2(1/b) of the source.

        Further probes have the earlier ones before them, from which a state may profit. So of `queries` probes the
        first is only known to be wrong at most `queries` times as often as all are on average, and the bound for p is
        taken at that. A bound for every model.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        check_accuracy(accuracy)
        items, errors = self._items, 2 * self.queries * (1 - accuracy)
        if errors >= 1:  # guessing does as well
            return 0.0
        sets = distinct_entropy(self.length, items) - distinct_entropy(self.length, self.length)
        prior = self.length / items
        left_open = _entropy(prior) - _least_information(prior, errors)
        return min(sets, max(0.0, sets - items * left_open))

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper": the source has no training, so the slices are ours.

        On "small" attention reaches 97 % at d_model = 32 without positions.
        """
        small = [cls(vocab_size=19, length=length, queries=4) for length in (4, 6, 8)]
        large = [cls(vocab_size=8195, length=length, queries=64) for length in (64, 128, 256, 512)]
        return {
            "small": Preset.same(small, 30_000),
            "paper": Preset.same(large, 20_000),
        }


def _entropy(p: float) -> float:
    """Binary entropy in bits."""
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def _least_information(prior: float, errors: float) -> float:
    """The least that a yes or no tells about a bit that is 1 with probability `prior`, in bits.

    Over all chances a (a 1 is denied) and b (a 0 is affirmed) with a + b = errors <= 1. Mutual information is convex in
    them, so a search by thirds finds its minimum.
    """

    def information(a: float) -> float:
        b = errors - a
        yes = prior * (1 - a) + (1 - prior) * b
        return _entropy(yes) - prior * _entropy(a) - (1 - prior) * _entropy(b)

    low, high = 0.0, errors
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if information(left) < information(right) else (left, high)
    return information((low + high) / 2)
