"""Variable tracking, after RULER: chains of assignments in a haystack, over tokens in place of words."""

from functools import partial
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoology.tasks.base import IGNORE, Batch, Preset, Task, Tokens, register_task
from zoology.tasks.limits import distinct_entropy, recall_bits
from zoology.tasks.rows import distinct, filled, look_up, places

QUESTION, ASSIGN = 0, 1
"""Reserved tokens: the question mark, and the sign between a variable and what it is assigned."""


@register_task("variable-tracking")
class VariableTracking(Task):
    """Variable tracking: a haystack hides `x1 = value`, `x2 = x1`, `x3 = x2`, ...; which variables have the value?

    Source: RULER, arXiv:2404.06654

    Behind the question mark 0 and the sign 1 the vocabulary is cut into variables, values and hay: with
    part = (vocab_size - 2) // 3 these are 2..part+1, the next `part` ids, and all above.

    - The context is `length` tokens of hay, uniform and independent, in which assignments of three tokens,
      `x = source`, stand in place of hay: `chains` chains of a value and `hops + 1` variables, the first of which is
      assigned the value and each further one the variable before it, in that order. All variables and all values are
      different, uniform over theirs. Assignments do not overlap; all places and all ways to interleave chains are
      equally likely. The context is shown `passes` times.
    - `variables`: `? value x1 x2 ...` asks for all variables of one chain, as RULER does, with the label x1 at the
      value and at each variable the next. RULER takes them in any order; the order of assignment makes one right.
    - `value`: `? x` asks for the value of the last variable of one chain, its label: no hop is given back.
    """

    vocab_size: int = Field(1024, ge=8, description="number of token ids: two signs, variables, values, hay")
    length: int = Field(128, ge=3, description="tokens in the haystack, assignments included")
    chains: int = Field(1, ge=1, description="chains of assignments")
    hops: int = Field(4, ge=0, description="assignments of a variable to a variable in each chain")
    question: Literal["variables", "value"] = Field("variables", description="what is asked of one chain")
    passes: int = Field(1, ge=1, description="how often the haystack is shown")

    # A property in place of the field of Task; ClassVar takes the field away.
    seq_len: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: self.passes * self.length + 1 + self._answers,
        doc="Tokens in a sequence: haystacks, question mark, what is asked, the answer but for its last token.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "VariableTracking":
        count = self.chains * (self.hops + 1)
        if count > self._part:
            raise ValueError(
                f"chains = {self.chains} and hops = {self.hops}: these have {count} variables, and vocab_size = "
                f"{self.vocab_size} has {self._part}; use a vocab_size of at least {3 * count + 2}"
            )
        if 3 * count > self.length:
            raise ValueError(
                f"chains = {self.chains} and hops = {self.hops}: these assignments need {3 * count} tokens, and "
                f"length = {self.length}"
            )
        return self

    @property
    def _part(self) -> int:
        return (self.vocab_size - 2) // 3

    @property
    def _answers(self) -> int:
        """Labels of a sequence."""
        return self.hops + 1 if self.question == "variables" else 1

    @property
    def slice_name(self) -> str:
        """Haystack, chains and hops, then what differs from the default: "L128-C1-H4", "L128-C1-H4-P2-value"."""
        name = f"L{self.length}-C{self.chains}-H{self.hops}" + (f"-P{self.passes}" if self.passes != 1 else "")
        return name + (f"-{self.question}" if self.question != "variables" else "")

    @property
    def context_length(self) -> int:
        """The haystacks."""
        return self.passes * self.length

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled behind the question mark."""
        return filled(partial(self._fill, rng), n, self.seq_len, token=QUESTION, size=max(1, 2**18 // self.length))

    def _fill(self, rng: np.random.Generator, tokens: Tokens, labels: Tokens) -> None:
        """Write a block of sequences over question marks, and its labels."""
        n, part, shape = len(tokens), self._part, (len(tokens), self.chains, self.hops + 1)
        count = self.chains * (self.hops + 1)
        variables = 2 + distinct(rng, n, count, part).reshape(shape)
        values = 2 + part + distinct(rng, n, self.chains, part)
        sources = np.concatenate([values[:, :, None], variables[:, :, :-1]], axis=2)
        start = places(rng, n, count, 3, self.length).reshape(shape)
        start.sort(axis=2)  # a variable is assigned before it is a source
        hay = rng.integers(2 + 2 * part, self.vocab_size, size=(n, self.length), dtype=np.int32)
        row = np.arange(n)[:, None, None]
        hay[row, start], hay[row, start + 1], hay[row, start + 2] = variables, ASSIGN, sources
        tokens[:, : self.context_length] = np.tile(hay, self.passes)

        question, answers = tokens[:, self.context_length + 1 :], labels[:, self.context_length + 1 :]  # views
        if self.question == "variables":  # of the first chain drawn: which one is asked for makes no difference
            question[:], answers[:] = sources[:, 0], variables[:, 0]
        else:
            question[:, 0], answers[:, 0] = variables[:, 0, -1], values[:, 0]

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): the assignments of the first haystack are followed, one after another."""
        hay = tokens[:, : self.length]
        sign = np.nonzero(hay == ASSIGN)[1].reshape(len(tokens), self.chains * (self.hops + 1))
        targets, sources = (np.take_along_axis(hay, sign + offset, axis=1) for offset in (-1, 1))
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        now = tokens[:, self.context_length + 1 : self.context_length + 2]
        for hop in range(self.hops + 1):
            if self.question == "variables":
                now = look_up(sources, targets, now, self.vocab_size, IGNORE)
                labels[:, self.context_length + 1 + hop] = now[:, 0]
            else:
                now = look_up(targets, sources, now, self.vocab_size, IGNORE)
        if self.question == "value":
            labels[:, -1] = now[:, 0]
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "key" (a variable), "value", "assign", "filler", "separator" or "query" for each token of (n, seq_len)."""
        roles = np.select(
            [tokens == QUESTION, tokens == ASSIGN, tokens < 2 + self._part, tokens < 2 + 2 * self._part],
            ["separator", "assign", "key", "value"],
            "filler",
        )
        roles[:, self.context_length + 1 :] = "query"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The information about the answers that the state must hold after the context, in bits.

        log2[M!/(M-K)!] - K [h(p) + (1-p) log2(M-1)], at least 0, with M variables, or values, to choose from and K that
        could be asked for: `chains * (hops + 1)` variables, or `chains` values. The entropy of all answers less what
        Fano's inequality leaves open, those before being known at each. Asking about one chain suffices: the state was
        there before it was drawn. A bound for every model.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        count = self.chains * self._answers
        entropy = distinct_entropy(count, self._part)
        return recall_bits(accuracy, answers=count, choices=self._part, entropy=entropy)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" has the paper's one chain of four hops in haystacks of 4096 to 32768 tokens.

        RULER asks pretrained models and trains none: the training slices are ours.

        On "small" attention reaches 98 % at d_model = 32 with rotary positions, and 99 % without.
        """
        small = [cls(vocab_size=50, length=length, hops=hops) for length in (12, 24) for hops in (1, 2)]
        return {
            "small": Preset.same(small, 11_000),
            "paper": Preset(
                train=tuple((cls(vocab_size=8192, length=length), 10_000) for length in (1024, 4096)),
                test=tuple(cls(vocab_size=8192, length=length) for length in (4096, 8192, 16384, 32768)),
            ),
        }
