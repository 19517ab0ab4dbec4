"""Associative recall with updates: some keys get a new value, and the last one counts."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoology.tasks.base import IGNORE, Preset, Tokens, register_task
from zoology.tasks.limits import distinct_entropy, recall_bits
from zoology.tasks.rows import distinct, look_up
from zoology.tasks.slotted import SlottedRecall


@register_task("forgetting-mqar")
class ForgettingMqar(SlottedRecall):
    """Recall with updates: pairs, then some of the keys with a new value; answer each key with its last value.

    Source: HazyResearch/zoology (forgetting_mqar), after Zoology, arXiv:2312.04927

    With V = vocab_size, N = num_pairs, U = num_updates and T = seq_len, a sequence is

    - the context: N different keys from 1..V/2-1, each with a value, as `[k v]` x N, then U different ones of these
      keys in random order, each with a new value, as `[k v]` x U; the whole repeated `passes` times;
    - the question part, the rest: each key once more, at an even offset, labelled there with the value that the key
      had last; fillers elsewhere. The slots of the queries are drawn as in `mqar`, with p(x) ~ x^(power-1).

    All N + U values of a sequence are different (from V/2..V-1), so a new value is never the old one, nor that of
    another key. (The public generator only keeps a key from getting the value that it has, so that two keys may share
    one.) The fillers are

    - `strict`: uniform over 0 and the keys that the sequence does not use, so that they tell nothing of its values;
    - `papers`: uniform over the whole vocabulary, except that one at an even offset is never a key of the sequence (in
      the public generator it may be, and then is a query without a label);
    - `zero`: all 0.
    """

    num_pairs: int = Field(8, ge=1, description="keys, each shown with a value (N)")
    num_updates: int = Field(4, ge=1, description="how many of the keys then get a new value (U)")

    @model_validator(mode="after")
    def _fits(self) -> "ForgettingMqar":
        n, u, t, v = self.num_pairs, self.num_updates, self.seq_len, self.vocab_size
        if v % 2:
            raise ValueError(f"vocab_size = {v}: must be even, one half for keys and one for values")
        if t % 2:
            raise ValueError(f"seq_len = {t}: must be even, as pairs and query slots take two tokens each")
        if u > n:
            raise ValueError(f"num_updates = {u}: each key is updated once at most, and num_pairs = {n}")
        if n > v // 2 - 1:
            raise ValueError(
                f"num_pairs = {n}: vocab_size = {v} has {v // 2 - 1} different keys; use at least {2 * n + 2}"
            )
        if n + u > v // 2:
            raise ValueError(
                f"num_pairs = {n} and num_updates = {u}: vocab_size = {v} has {v // 2} different values; use at "
                f"least {2 * (n + u)}"
            )
        need = self.context_length + 2 * n
        if need > t:
            raise ValueError(
                f"num_pairs = {n} and num_updates = {u}: with passes = {self.passes} these need {need} tokens, and "
                f"seq_len = {t}"
            )
        return self

    @property
    def _more_sizes(self) -> str:
        return f"-U{self.num_updates}"

    @property
    def context_length(self) -> int:
        """All passes of the pairs and their updates: 2 (N + U) passes."""
        return 2 * (self.num_pairs + self.num_updates) * self.passes

    def _fill(self, rng: np.random.Generator, tokens: Tokens, labels: Tokens) -> None:
        """Write a block of sequences and labels into arrays, labels being all `IGNORE` before."""
        n, pairs, half = len(tokens), self.num_pairs, self.vocab_size // 2
        keys = 1 + distinct(rng, n, pairs, half - 1)
        values = half + distinct(rng, n, pairs + self.num_updates, half)
        updated = distinct(rng, n, self.num_updates, pairs)  # which keys, in the order of their updates
        shown = np.concatenate([keys, np.take_along_axis(keys, updated, axis=1)], axis=1)
        tokens[:, : self.context_length] = np.tile(np.stack([shown, values], axis=2).reshape(n, -1), self.passes)
        last = values[:, :pairs].copy()
        np.put_along_axis(last, updated, values[:, pairs:], axis=1)

        context = self.context_length
        self._ask(rng, tokens[:, context:], labels[:, context:], keys, last, half)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): a dictionary that the context's pairs are written into in order, then asked."""
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        context, question = tokens[:, : self.context_length], tokens[:, self.context_length :: 2]
        answers = look_up(context[:, 0::2], context[:, 1::2], question, self.vocab_size, IGNORE)
        labels[:, self.context_length :: 2] = answers
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "key", "value", "new-key", "new-value", "query" or "filler" for each token of (n, seq_len)."""
        roles = np.where(self.solve(tokens) != IGNORE, "query", "filler").astype("<U9")
        once = ["key", "value"] * self.num_pairs + ["new-key", "new-value"] * self.num_updates
        roles[:, : self.context_length] = once * self.passes
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The least state at the end of the context, in bits, of any model that is right this often.

        The last values of the N keys are N different ones of V/2, every ordered choice equally likely, and what was
        overwritten is never asked: so the bound is that of `mqar` with N pairs, whatever the number of updates.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        choices = self.vocab_size // 2
        entropy = distinct_entropy(self.num_pairs, choices)
        return recall_bits(accuracy, answers=self.num_pairs, choices=choices, entropy=entropy)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" is the mix of the public repository, in which four keys are updated.

        On "small" attention reaches 100 % at d_model = 32 with rotary positions, and 73 % without: nothing but its
        place tells which of two values is the last.
        """
        small = [cls(vocab_size=256, seq_len=64, num_pairs=n, num_updates=u) for n, u in ((4, 2), (8, 4), (8, 8))]

        def paper(seq_len: int, num_pairs: int) -> ForgettingMqar:
            return cls(seq_len=seq_len, num_pairs=num_pairs, num_updates=4, fillers="papers")

        trained = {(64, 4): 100_000, (128, 9): 20_000, (256, 16): 20_000, (256, 25): 20_000, (256, 36): 20_000}
        tested = [(64, 4), (64, 9), (128, 16), (256, 36), (512, 64), (1024, 144), (2048, 256)]
        return {
            "small": Preset.same(small, 15_000),
            "paper": Preset(
                train=tuple((paper(*shape), n) for shape, n in trained.items()),
                test=tuple(paper(*shape) for shape in tested),
            ),
        }
