"""A phone book: names and numbers of several tokens, then some of the names."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoology.tasks.base import IGNORE, Batch, Preset, Task, Tokens, register_task
from zoology.tasks.limits import recall_bits
from zoology.tasks.rows import blocks, distinct, distinct_words

DIGITS = 10
"""Token ids below it are the digits of numbers; all others are the parts of names."""


@register_task("phonebook")
class Phonebook(Task):
    """Phone book: names with their numbers, each of several tokens; then a name comes again: dial, digit by digit.

    Source: Repeat After Me, arXiv:2402.01032; also Griffin, arXiv:2402.19427

    The book is `entries` times `name number`, repeated `passes` times. Names are different words of `name_length`
    tokens from 10..vocab_size-1, numbers are `number_length` digits, each uniform over the tokens 0..9 and independent.
    Then `queries` different entries come again, in random order and in full but for the very last digit: the first
    digit is the label at the name's last token, each further one at the digit before it.

    Names may share tokens, so one has to be read as a whole. The papers ask pretrained models in words, with two
    entries repeated as an example; a model trained on the task needs none.
    """

    vocab_size: int = Field(64, ge=DIGITS + 1, description="number of token ids: ten digits and the parts of names")
    entries: int = Field(20, ge=1, description="entries in the book")
    name_length: int = Field(2, ge=1, description="tokens in a name")
    number_length: int = Field(10, ge=1, description="digits in a number")
    queries: int = Field(1, ge=1, description="names that are asked for")
    passes: int = Field(1, ge=1, description="how often the book is shown")

    # A property in place of the field of Task; ClassVar takes the field away.
    seq_len: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: (self.passes * self.entries + self.queries) * self._entry_length - 1,
        doc="Tokens in a sequence: the books, and the queries but for the last digit.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "Phonebook":
        names = (self.vocab_size - DIGITS) ** self.name_length
        if names < self.entries:
            raise ValueError(
                f"entries = {self.entries}: with vocab_size = {self.vocab_size} and name_length = {self.name_length} "
                f"there are {names} different names; use a larger vocab_size or longer names"
            )
        if names >= 2**62:
            raise ValueError(
                f"name_length = {self.name_length}: with vocab_size = {self.vocab_size} there are over 2^62 names; "
                "use a smaller vocab_size or shorter names"
            )
        if self.queries > self.entries:
            raise ValueError(f"queries = {self.queries}: must be at most entries = {self.entries}")
        return self

    @property
    def _entry_length(self) -> int:
        return self.name_length + self.number_length

    @property
    def slice_name(self) -> str:
        """Entries, name, number and queries, then what differs from the default: "E20-2+10-Q1", "E20-2+10-Q1-P2"."""
        name = f"E{self.entries}-{self.name_length}+{self.number_length}-Q{self.queries}"
        return name + (f"-P{self.passes}" if self.passes != 1 else "")

    @property
    def context_length(self) -> int:
        """The books."""
        return self.passes * self.entries * self._entry_length

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled where a digit of an answer follows."""
        batch = Batch(np.empty((n, self.seq_len), dtype=np.int32), np.empty((n, self.seq_len), dtype=np.int32))
        for block in blocks(n):
            batch.tokens[block], asked = self._rows(rng, block.stop - block.start)
            batch.labels[block] = self._labels(asked)
        return batch

    def _rows(self, rng: np.random.Generator, n: int) -> tuple[Tokens, Tokens]:
        """Sequences (n, seq_len) and the numbers asked for (n, queries, number_length)."""
        names = DIGITS + distinct_words(rng, n, self.entries, self.name_length, self.vocab_size - DIGITS)
        numbers = rng.integers(DIGITS, size=(n, self.entries, self.number_length), dtype=np.int32)
        book = np.concatenate([names, numbers], axis=2)
        asked = np.take_along_axis(book, distinct(rng, n, self.queries, self.entries)[:, :, None], axis=1)
        shown = np.tile(book.reshape(n, -1), self.passes)
        tokens = np.concatenate([shown, asked.reshape(n, -1)[:, :-1]], axis=1)
        return tokens, asked[:, :, self.name_length :]

    def _labels(self, numbers: Tokens) -> Tokens:
        """(n, seq_len) labels from the numbers asked for (n, queries, number_length)."""
        n = len(numbers)
        labels = np.full((n, self.context_length + self.queries * self._entry_length), IGNORE, dtype=np.int32)
        entries = labels[:, self.context_length :].reshape(n, self.queries, self._entry_length)
        entries[:, :, self.name_length :] = numbers
        labels[:, self.context_length :] = entries.reshape(n, self.queries * self._entry_length)
        return labels[:, 1:]  # a label stands at the token before

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): each name asked for is compared with every name of the book, and its number copied."""
        n, name = len(tokens), self.name_length
        book = tokens[:, : self.entries * self._entry_length].reshape(n, self.entries, self._entry_length)
        numbers = np.empty((n, self.queries, self.number_length), dtype=np.int32)
        for i in range(self.queries):
            asked = tokens[:, self.context_length + i * self._entry_length :][:, None, :name]
            entry = (book[:, :, :name] == asked).all(axis=2).argmax(axis=1)
            numbers[:, i] = book[np.arange(n), entry, name:]
        return self._labels(numbers)

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "key" (in a name), "value" (in a number) or "query" (scored) for each token of (n, seq_len)."""
        roles = np.where(tokens < DIGITS, "value", "key")
        roles[self.solve(tokens) != IGNORE] = "query"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The information about the numbers that the state must hold after the context, in bits.

        E L [log2 10 - h(p) - (1-p) log2 9], at least 0, with E entries of L digits: the entropy of all numbers less
        what Fano's inequality leaves open, the digits before being known at each answer. Few queries suffice for it:
        the state was there before the names were drawn, so any entry is answered as well on average, and numbers that
        were asked for earlier can only help. A bound for every model, whatever it spends on the names besides, which
        the queries give back.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        return recall_bits(accuracy, answers=self.entries * self.number_length, choices=DIGITS)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" has names of two parts and numbers of ten digits, as the paper in words.

        The paper asks pretrained models and trains none: the sizes of the book and the training slices are ours.
        """
        small = [cls(vocab_size=42, entries=entries, number_length=3, queries=2) for entries in (2, 4, 8)]
        paper = {entries: cls(vocab_size=1010, entries=entries) for entries in (10, 20, 30, 40, 60, 80, 100, 120)}
        return {
            "small": Preset.same(small, 15_000),
            "paper": Preset(
                train=tuple((paper[entries], 20_000) for entries in (10, 20, 30, 40)), test=tuple(paper.values())
            ),
        }
