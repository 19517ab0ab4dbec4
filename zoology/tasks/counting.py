"""Parity and majority of a row of bits: tasks in which recall is not the issue."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from zoology.tasks.base import IGNORE, Batch, Preset, Task, Tokens, register_task
from zoology.tasks.limits import check_accuracy, recall_bits


class Counting(Task):
    """Base of both tasks: bits, uniform and independent, and one bit to be said of them.

    - `cumulative`: at every position, of the bits so far.
    - `final`: at the last position, of all bits.

    Nothing marks the end of a context: it is taken to be the first half of the sequence, where the count matters most.
    """

    # Properties in place of the field of Task; ClassVar takes the field away.
    vocab_size: ClassVar[property] = property(lambda self: 2, doc="The tokens are bits.")  # type: ignore[assignment]
    seq_len: int = Field(64, ge=2, description="bits in a sequence (T)")
    score: Literal["cumulative", "final"] = Field("cumulative", description="which positions are labelled")

    @property
    def slice_name(self) -> str:
        """The length, then what differs from the default: "T64", "T64-final"."""
        return f"T{self.seq_len}" + (f"-{self.score}" if self.score != "cumulative" else "")

    @property
    def context_length(self) -> int:
        """Half of the sequence, rounded down."""
        return self.seq_len // 2

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len) of bits; the labels are what `solve` says, by definition."""
        tokens = rng.integers(2, size=(n, self.seq_len), dtype=np.int32)
        return Batch(tokens, self.solve(tokens))

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): worked out from how many ones there are up to each position."""
        labels = self._of(tokens.cumsum(axis=1, dtype=np.int32)).astype(np.int32)
        if self.score == "final":
            labels[:, :-1] = IGNORE
        return labels

    def _of(self, ones: Tokens) -> Tokens:
        """The label of each position from the number of ones up to it; both (n, seq_len)."""
        raise NotImplementedError


@register_task("parity")
class Parity(Counting):
    """Parity: of a row of bits, say whether the ones so far, or all of them, are odd in number.

    Source: Hahn, Theoretical limitations of self-attention, arXiv:1906.06755

    `seq_len` tokens 0 or 1, uniform and independent. The label is 1 where the number of ones up to and with the
    position is odd, else 0: at every position (`cumulative`) or at the last (`final`).

    One bit of state is enough, but every token may flip it: a task for keeping track, not for recall.
    """

    def _of(self, ones: Tokens) -> Tokens:
        return ones % 2

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The information about the parity that the state must hold at any point, in bits: 1 - h(p), at least 0.

        What comes later is independent of the parity up to here, and any answer to come gives it away, so Fano's
        inequality for one bit applies. Where every position is scored, all up to the context's end may be right without
        any state, and p is what is left for the others. A bound for every model, reached at accuracy 1 by one bit.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        check_accuracy(accuracy)
        if self.score == "cumulative":
            later = self.seq_len - self.context_length
            accuracy = max(0.0, (accuracy * self.seq_len - self.context_length) / later)
        return recall_bits(accuracy, answers=1, choices=2)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" trains on lengths up to 40, as arXiv:2207.02098 and arXiv:2411.12537 do.

        They draw every length; the lengths chosen here, and those of the test, are ours: the second paper
        tests on 40 to 256.
        """
        small = [cls(seq_len=seq_len) for seq_len in (32, 64)]
        trained = tuple((cls(seq_len=seq_len, score="final"), 40_000) for seq_len in (20, 30, 40))
        tested = tuple(cls(seq_len=seq_len, score="final") for seq_len in (40, 100, 200, 300, 400, 500))
        return {
            "small": Preset.same(small, 20_000),
            "paper": Preset(train=trained, test=tested),
        }


@register_task("majority")
class Majority(Counting):
    """Majority: of a row of bits, say whether the ones so far, or among all of them, are more than half.

    Source: Merrill et al., Saturated transformers, arXiv:2106.16213

    `seq_len` tokens 0 or 1, uniform and independent. The label is 1 where the ones up to and with the position are more
    than the zeros, else 0 (a tie is no majority): at every position (`cumulative`) or at the last (`final`).

    All that is needed is a count: a task for keeping track, not for recall.
    """

    def _of(self, ones: Tokens) -> Tokens:
        return 2 * ones > np.arange(1, self.seq_len + 1)

    def state_bits(self, accuracy: float = 1.0) -> float | None:
        """The least state after the first C = T // 2 bits of a model that never errs, in whole bits: ceil(log2(C+1)).

        They hold 0..C ones, and any two of these counts have a rest of the sequence that makes a majority of all T bits
        with the one and none with the other: each count needs a state of its own. A counter of those bits is enough.

        Returns:
            None below accuracy 1, where no bound is known.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        check_accuracy(accuracy)
        return float(self.context_length.bit_length()) if accuracy == 1 else None

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU, odd lengths, so that both answers are even; "paper" has the lengths of `parity`'s."""
        small = [cls(seq_len=seq_len) for seq_len in (31, 63)]
        trained = tuple((cls(seq_len=seq_len, score="final"), 40_000) for seq_len in (21, 31, 41))
        tested = tuple(cls(seq_len=seq_len, score="final") for seq_len in (41, 101, 201, 301, 401, 501))
        return {
            "small": Preset.same(small, 20_000),
            "paper": Preset(train=trained, test=tested),
        }
