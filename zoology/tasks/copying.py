"""Copying a string, and looking up what followed an n-gram in it."""

import math
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoology.tasks.base import IGNORE, Batch, Preset, Task, Tokens, register_task
from zoology.tasks.limits import check_accuracy, recall_bits
from zoology.tasks.rows import filled

SEPARATOR = 0
"""Stands after the string. All other tokens are letters."""


@register_task("copying")
class Copying(Task):
    """Copying: a random string is shown, then a separator; repeat the string, token by token.

    Source: Repeat After Me, arXiv:2402.01032

    `x1 ... xL | x1 ... x(L-1)` with letters x uniform over 1..vocab_size-1 and the separator 0. The labels begin at the
    separator: x1 there, then at each copied token the next. With `passes` the string is shown that often, a separator
    after each time, and copied once. The length belongs to the slice, so there is no end of the string to predict; the
    paper's random lengths are a mix of slices.
    """

    vocab_size: int = Field(27, ge=3, description="number of token ids: the letters and the separator")
    length: int = Field(50, ge=1, description="letters in the string (L)")
    passes: int = Field(1, ge=1, description="how often the string is shown")

    # A property in place of the field of Task; ClassVar takes the field away.
    seq_len: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: self.passes * (self.length + 1) + self.length - 1,
        doc="Tokens in a sequence: each time the string and its separator, then the copy but for its last token.",
    )

    @property
    def slice_name(self) -> str:
        """The string's length, then what differs from the default: "L50", "L50-P2"."""
        return f"L{self.length}" + (f"-P{self.passes}" if self.passes != 1 else "")

    @property
    def context_length(self) -> int:
        """Up to the last separator, which asks for the first letter."""
        return self.passes * (self.length + 1) - 1

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled at the last `length` positions."""
        tokens = np.empty((n, self.seq_len), dtype=np.int32)
        labels = np.full((n, self.seq_len), IGNORE, dtype=np.int32)
        string = rng.integers(1, self.vocab_size, size=(n, self.length), dtype=np.int32)
        marked = np.pad(string, ((0, 0), (0, 1)), constant_values=SEPARATOR)
        tokens[:, : self.context_length + 1] = np.tile(marked, self.passes)
        tokens[:, self.context_length + 1 :] = string[:, :-1]
        labels[:, -self.length :] = string
        return Batch(tokens, labels)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): the string as first shown, from the last separator on."""
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        labels[:, self.context_length :] = tokens[:, : self.length]
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "value" (shown), "separator" or "query" (where a letter is to be named) for each token of (n, seq_len)."""
        roles = np.where(tokens == SEPARATOR, "separator", "value")
        roles[:, self.context_length :] = "query"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The information about the string that the state must hold after the context, in bits.

        L [log2 M - h(p) - (1-p) log2(M-1)], at least 0, with M = vocab_size - 1 letters: the string's entropy less what
        Fano's inequality leaves open, the letters before being known at each answer. At p = 1 it is the L log2 M of the
        paper's theorem on models with a state of fixed size. A bound for every model.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        return recall_bits(accuracy, answers=self.length, choices=self.vocab_size - 1)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" trains on strings of up to 50 letters out of 26 and tests far beyond.

        The paper draws a length for each string; here the lengths are 10, 20, ..., 50. Its public code asks for 8 to
        50 letters in training and 40 to 200 in the test by default: the lengths of the test here are ours.

        On "small" attention reaches 99 % at d_model = 32 without positions.
        """
        small = [cls(length=length) for length in (8, 16, 32)]
        return {
            "small": Preset.same(small, 15_000),
            "paper": Preset(
                train=tuple((cls(length=length), 40_000) for length in range(10, 51, 10)),
                test=tuple(cls(length=length) for length in (50, 100, 200, 300, 500, 1000)),
            ),
        }


@register_task("ngram-lookup")
class NgramLookup(Task):
    """N-gram lookup: a random string holds an n-gram once; given that n-gram, name the letters that followed it.

    Source: Repeat After Me, arXiv:2402.01032

    The string is `length` letters of 1..vocab_size-1, the n-gram one of its stretches of `ngram` letters that has
    `answer` more behind it; among all strings and stretches those are equally likely in which the n-gram stands only
    once. The separator is 0. The labels are the letters that followed, at the last `answer` positions, each known at
    the next.

    - `suffix`: `string | n-gram`, then the letters that followed: all of the string may be asked for.
    - `prefix`: `n-gram | string |`, then the letters: what to look for is known beforehand.

    With `passes` the string is shown that often, a separator after each time.
    """

    vocab_size: int = Field(27, ge=3, description="number of token ids: the letters and the separator")
    length: int = Field(30, ge=2, description="letters in the string")
    ngram: int = Field(3, ge=1, description="letters in the n-gram (n)")
    answer: int = Field(1, ge=1, description="letters to name")
    question: Literal["suffix", "prefix"] = Field("suffix", description="whether the n-gram comes last or first")
    passes: int = Field(1, ge=1, description="how often the string is shown")

    # A property in place of the field of Task; ClassVar takes the field away.
    seq_len: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: (
            self.passes * (self.length + 1) + self.ngram + self.answer - 1 + (1 if self.question == "prefix" else 0)
        ),
        doc="Tokens in a sequence: strings, separators, the n-gram, the answer but for its last token.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "NgramLookup":
        if self.length < self.ngram + self.answer:
            raise ValueError(
                f"length = {self.length}: must be at least ngram + answer = {self.ngram + self.answer}, "
                "so that the n-gram and what follows it fit"
            )
        most = self.ngram + 2 * (self.vocab_size - 1) ** self.ngram
        if self.length > most:
            raise ValueError(
                f"length = {self.length}: an n-gram of {self.ngram} out of {self.vocab_size - 1} letters hardly ever "
                f"stands only once in so long a string; use at most {most}, or a larger ngram or vocab_size"
            )
        return self

    @property
    def slice_name(self) -> str:
        """String, n-gram and answer, then what differs from the default: "L30-n3-A1", "L30-n3-A1-P2-prefix"."""
        name = f"L{self.length}-n{self.ngram}-A{self.answer}" + (f"-P{self.passes}" if self.passes != 1 else "")
        return name + (f"-{self.question}" if self.question != "suffix" else "")

    @property
    def context_length(self) -> int:
        """`suffix`: before the n-gram. `prefix`: before the last separator, which asks for the first letter."""
        strings = self.passes * (self.length + 1)
        return strings if self.question == "suffix" else self.ngram + strings

    @property
    def _string_at(self) -> int:
        return 0 if self.question == "suffix" else self.ngram + 1

    @property
    def _ngram_at(self) -> int:
        return self.context_length if self.question == "suffix" else 0

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled at the last `answer` positions."""
        return filled(partial(self._fill, rng), n, self.seq_len, token=SEPARATOR)

    def _fill(self, rng: np.random.Generator, tokens: Tokens, labels: Tokens) -> None:
        """Write a block of sequences over separators, and its labels."""
        string, start = self._draw(rng, len(tokens))
        shown = tokens[:, self._string_at :][:, : self.passes * (self.length + 1)]
        shown[:] = np.tile(np.pad(string, ((0, 0), (0, 1)), constant_values=SEPARATOR), self.passes)
        found = np.take_along_axis(string, start[:, None] + np.arange(self.ngram + self.answer), axis=1)
        tokens[:, self._ngram_at :][:, : self.ngram] = found[:, : self.ngram]
        tokens[:, self.seq_len - self.answer + 1 :] = found[:, self.ngram : -1]
        labels[:, -self.answer :] = found[:, self.ngram :]

    def _draw(self, rng: np.random.Generator, n: int) -> tuple[Tokens, NDArray[np.int64]]:
        """Strings (n, length) and where their n-grams start (n,): drawn together until the n-gram stands only once."""
        string = np.empty((n, self.length), dtype=np.int32)
        start = np.empty(n, dtype=np.int64)
        rows = np.arange(n)
        while rows.size:
            string[rows] = rng.integers(1, self.vocab_size, size=(rows.size, self.length), dtype=np.int32)
            start[rows] = rng.integers(self.length - self.ngram - self.answer + 1, size=rows.size)
            wanted = np.take_along_axis(string[rows], start[rows, None] + np.arange(self.ngram), axis=1)
            rows = rows[self._matches(string[rows], wanted).sum(axis=1) > 1]
        return string, start

    def _matches(self, string: Tokens, wanted: Tokens) -> NDArray[np.bool_]:
        """(n, length-ngram+1): whether the n-gram stands at each place of the string."""
        last = self.length - self.ngram + 1
        same = np.ones((len(string), last), dtype=bool)
        for i in range(self.ngram):
            same &= string[:, i : i + last] == wanted[:, i : i + 1]
        return same

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): the n-gram is looked for in the string as first shown."""
        string = tokens[:, self._string_at :][:, : self.length]
        wanted = tokens[:, self._ngram_at :][:, : self.ngram]
        after = self._matches(string, wanted).argmax(axis=1)[:, None] + self.ngram
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        labels[:, -self.answer :] = np.take_along_axis(string, after + np.arange(self.answer), axis=1)
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "value" (the string), "separator", "key" (the n-gram) or "query" (scored) for each token of (n, seq_len)."""
        roles = np.where(tokens == SEPARATOR, "separator", "value")
        roles[:, self._ngram_at :][:, : self.ngram] = "key"
        roles[:, -self.answer :] = "query"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float | None:
        """The least state after the context, in bits, of a model that never errs; no bound is known below accuracy 1.

        With M letters, L = length and W = L - n + 1 stretches of n letters in the string:

        - `suffix`: (L - n) log2 M + log2(1 - W(W-1) / (2 M^n)), if the logarithm exists. Of all strings at least that
          part has no stretch twice, as two stretches are equal with probability M^-n. Two such strings that begin with
          the same n letters need different states, or the n-gram before their first difference would be answered
          alike; M^n beginnings share out the strings, so one of them has at least the mean. No bound is known for
          longer strings over fewer letters.
        - `prefix`: `answer` log2(M-1), or log2 M for one letter after n >= 2. What the model must keep once it has seen
          the n-gram and the string: an n-gram a...ab may be followed by any letters but b (by b too, if it is one
          letter and n >= 2) without standing there twice.

        Returns:
            None where no bound is known.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        check_accuracy(accuracy)
        if accuracy < 1:
            return None
        letters, windows = self.vocab_size - 1, self.length - self.ngram + 1
        if self.question == "prefix":
            if self.answer == 1 and self.ngram > 1:
                return math.log2(letters)
            return self.answer * math.log2(letters - 1)
        repeats = windows * (windows - 1) / (2 * letters**self.ngram)
        if repeats >= 1:
            return None
        return max(0.0, (self.length - self.ngram) * math.log2(letters) + math.log2(1 - repeats))

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" has the paper's two variants over 26 letters, at lengths of our choice.

        On "small" attention reaches 99 % at d_model = 32 without positions.
        """
        small = [cls(length=length, ngram=ngram) for length, ngram in ((8, 1), (16, 2), (32, 2))]
        papers = [
            cls(length=length, question=question) for question in ("suffix", "prefix") for length in (20, 30, 40, 50)
        ]
        return {
            "small": Preset.same(small, 30_000),
            "paper": Preset.same(papers, 20_000),
        }
