"""Set disjointness: two sets of tokens one after the other; which token is in both, or is any?"""

import math
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoology.tasks.base import IGNORE, Batch, Preset, Task, Tokens, register_task
from zoology.tasks.limits import check_accuracy
from zoology.tasks.rows import blocks, distinct, look_up

QUESTION, SEPARATOR, NO, YES = range(4)
SPECIAL = 4
"""Token ids below it are reserved; elements of the sets are from 4 on."""


@register_task("set-disjointness")
class SetDisjointness(Task):
    """Two sets: after `A separator B question`, name the token in both, or say if there is one: yes (3), no (2).

    Source: Just read twice, arXiv:2407.05483

    A and B are `size_a` and `size_b` different tokens, uniform over the U = vocab_size - 4 that are not reserved, in
    random order; A comes first, so either order of a small and a large set is had by swapping the sizes. Reserved are
    0 (the question), 1 (the separator), 2 (no) and 3 (yes). With `passes` the sets are shown that often, a separator
    after each but the last: `A , B , A , B ?`. The label is at the question, the last token.

    - `which`: exactly one token is in both, and is the label. It stands anywhere in either set, equally likely.
    - `whether`: one token is in both and the label is yes, or none is and it is no, with probability 1/2 each.

    A model that reads the sets once, in order, must keep all of A, log2 C(U, size_a) bits (see `state_bits`), however
    few B has. One that is shown them again, or reads its prompt whole, may keep the smaller of the two instead, which
    is what the paper's two ways of reading twice are for.
    """

    vocab_size: int = Field(2048, ge=SPECIAL + 2, description="number of token ids, four of them reserved")
    size_a: int = Field(4, ge=1, description="elements of the set that is shown first")
    size_b: int = Field(16, ge=1, description="elements of the set that is shown second")
    question: Literal["which", "whether"] = Field("which", description="which token is in both, or whether any is")
    passes: int = Field(1, ge=1, description="how often the two sets are shown")

    # A property in place of the field of Task: the sizes say how long a sequence is. ClassVar takes the field away.
    seq_len: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: self.passes * (self.size_a + self.size_b + 2),
        doc="Tokens in a sequence: in every pass both sets, each with the mark that follows it.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "SetDisjointness":
        need = self.size_a + self.size_b
        if need > self.vocab_size - SPECIAL:
            raise ValueError(
                f"size_a = {self.size_a} and size_b = {self.size_b}: vocab_size = {self.vocab_size} leaves "
                f"{self.vocab_size - SPECIAL} tokens for the two sets; use at least {need + SPECIAL}"
            )
        return self

    @property
    def slice_name(self) -> str:
        """Sizes in the order shown, then what differs from the default: "A4-B16", "A4-B16-P2-whether"."""
        name = f"A{self.size_a}-B{self.size_b}" + (f"-P{self.passes}" if self.passes != 1 else "")
        return name + (f"-{self.question}" if self.question != "which" else "")

    @property
    def context_length(self) -> int:
        """Up to the last B: the last A and its separator are the end of it.

        From there on a model compares with what it has kept. (The end of the sets would be the wrong place: a model
        that compares as it reads needs nothing there but the answer.)
        """
        return self.seq_len - self.size_b - 1

    @property
    def prompt_length(self) -> int:
        """All but the question: who reads a prompt whole (JRT-RNN in the paper) sees both sets before it compares.

        What such a model keeps after it need be no more than the answer, so `state_bits` says nothing of it.
        """
        return self.seq_len - 1

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled at the last position."""
        tokens = np.empty((n, self.seq_len), dtype=np.int32)
        labels = np.full((n, self.seq_len), IGNORE, dtype=np.int32)
        for block in blocks(n):
            tokens[block], labels[block, -1] = self._rows(rng, block.stop - block.start)
        return Batch(tokens, labels)

    def _rows(self, rng: np.random.Generator, n: int) -> tuple[Tokens, Tokens]:
        """(n, seq_len) tokens and the (n,) answers."""
        elements = SPECIAL + distinct(rng, n, self.size_a + self.size_b, self.vocab_size - SPECIAL)
        a, b = elements[:, : self.size_a], elements[:, self.size_a :]
        row = np.arange(n)
        common = a[row, rng.integers(self.size_a, size=n)]
        place = rng.integers(self.size_b, size=n)
        if self.question == "which":
            b[row, place] = common
            answers = common
        else:
            both = rng.integers(2, size=n, dtype=bool)
            b[row[both], place[both]] = common[both]
            answers = np.where(both, YES, NO).astype(np.int32)
        mark = np.full((n, 1), SEPARATOR, dtype=np.int32)
        tokens = np.tile(np.concatenate([a, mark, b, mark], axis=1), self.passes)
        tokens[:, -1] = QUESTION
        return tokens, answers

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): every element of the first B looked up in the first A."""
        a, b = tokens[:, : self.size_a], tokens[:, self.size_a + 1 : self.size_a + 1 + self.size_b]
        common = look_up(a, a, b, self.vocab_size, missing=IGNORE).max(axis=1)
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        labels[:, -1] = common if self.question == "which" else np.where(common == IGNORE, NO, YES)
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "set-a", "set-b", "separator" or "query" for each token of (n, seq_len)."""
        once = ["set-a"] * self.size_a + ["separator"] + ["set-b"] * self.size_b + ["separator"]
        row = np.array(once * self.passes)
        row[-1] = "query"
        return np.tile(row, (len(tokens), 1))

    def state_bits(self, accuracy: float = 1.0) -> float | None:
        """The least state after A, in bits, of a model that never errs, shown the sets once: log2 C(U, size_a).

        For any two sets A there is a B that only one of them answers alike, so each needs a state of its own; it
        depends on which set comes first. Naming the common element when B has but one needs nothing.

        Returns:
            None where no such limit is known to hold: below accuracy 1, with more than one pass (a model may then
            keep the smaller set), or where the two sets of the argument and B do not fit U.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        check_accuracy(accuracy)
        if self.question == "which" and self.size_b == 1:
            return 0.0
        universe = self.vocab_size - SPECIAL
        if accuracy < 1 or self.passes > 1 or universe < 2 * self.size_a + self.size_b:
            return None
        return math.log2(math.comb(universe, self.size_a))

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" is the recipe of the paper's synthetic study.

        On "small" one attention gets 31 % right at d_model = 32: each of B has to be looked for in A, and then the
        one that was found. `short-conv+attention+short-conv+attention` reaches 97 % without positions.
        """
        small = [cls(vocab_size=36, size_a=a, size_b=b) for a, b in ((2, 8), (8, 2), (4, 16), (16, 4))]

        def paper(*sizes: tuple[int, int]) -> list[SetDisjointness]:
            both_orders = [order for a, b in sizes for order in ((a, b), (b, a))]
            return [cls(vocab_size=2048, size_a=a, size_b=b) for a, b in both_orders]

        trained = paper((4, 16), (8, 32), (64, 16), (4, 128), (16, 256), (4, 256))
        tested = paper(
            (1, 32), (4, 32), (4, 128), (16, 256), (4, 256), (16, 512), (4, 512), (8, 768), (16, 768), (4, 768)
        )
        return {
            "small": Preset.same(small, 22_000),
            "paper": Preset(train=tuple((task, 20_000) for task in trained), test=tuple(tested)),
        }
