"""Multi-query associative recall: key-value pairs, then some of the keys again, each asking for its value."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from zoology.tasks.base import IGNORE, Preset, Tokens, register_task
from zoology.tasks.limits import distinct_entropy, recall_bits
from zoology.tasks.rows import distinct, look_up
from zoology.tasks.slotted import SlottedRecall


@register_task("mqar")
class Mqar(SlottedRecall):
    """Multi-query associative recall: after `k1 v1 k2 v2 ...`, answer each key that comes again with its value.

    Source: Zoology, arXiv:2312.04927

    With V = vocab_size, N = num_pairs and T = seq_len, a sequence is

    - the context: N different keys from 1..V/2-1 and N different values from V/2..V-1, as `[k v]` x N, the whole
      repeated `passes` times in the same order;
    - the question part, T - 2 N passes tokens: each key once more, at an even offset, labelled *at that position* with
      its value (nothing is left to shift); fillers elsewhere. The slots x = 1, 2, ..., one for each even offset, are
      drawn without replacement with p(x) ~ x^(power-1); the i-th pair of the context gets the i-th slot drawn.

    The context is the first 2 N passes tokens, and a key of the context at an even offset after it is a query. That
    definition gives every sequence one right answer, under all laws of the fillers:

    - `strict`: uniform over 0 and the keys that the sequence does not use. (Were they to range over the unused values
      too, they would give away, after the context, which values are in it.)
    - `papers`: uniform over the whole vocabulary, as in the public generator, so that a key may come again at an odd
      offset, followed by a token that is not its value; the right answer remains the value of the context. The one
      difference from the public law: a filler at an *even* offset is never a key of its sequence, or it would be a
      query without a label. At (V, T, N) = (8192, 64, 4) that concerns 1.2 % of the public generator's sequences, at
      (8192, 128, 8) 4.6 %, at (8192, 256, 16) 17 %, and none where every slot holds a query, as at (8192, 256, 64).
      Counting fillers at all offsets, a filler equals a key before its query in 0.14, 0.30, 0.59 and 0.39 % of the
      public queries, and in 0.10, 0.18, 0.34 and 0.38 % of those here (measured on 50k sequences or more);
    - `zero`: all 0, as in Zoology's figure 2.
    """

    @model_validator(mode="after")
    def _fits(self) -> "Mqar":
        n, t, v = self.num_pairs, self.seq_len, self.vocab_size
        if v % 2:
            raise ValueError(f"vocab_size = {v}: must be even, one half for keys and one for values")
        if t % 2:
            raise ValueError(f"seq_len = {t}: must be even, as pairs and query slots take two tokens each")
        if n > v // 2 - 1:
            raise ValueError(
                f"num_pairs = {n}: vocab_size = {v} has {v // 2 - 1} different keys, so use at most that many pairs "
                f"or a vocab_size of at least {2 * n + 2}"
            )
        need = 2 * n * self.passes + 2 * n
        if need > t:
            raise ValueError(
                f"num_pairs = {n}: with passes = {self.passes} these need {need} tokens, and seq_len = {t} holds at "
                f"most {t // (2 * self.passes + 2)} pairs"
            )
        return self

    @property
    def context_length(self) -> int:
        """All passes of the pairs: 2 N passes. What is asked after it must be in the state there."""
        return 2 * self.num_pairs * self.passes

    def _fill(self, rng: np.random.Generator, tokens: Tokens, labels: Tokens) -> None:
        """Write a block of sequences and labels into arrays, labels being all `IGNORE` before."""
        n, context, half = len(tokens), self.context_length, self.vocab_size // 2
        keys = 1 + distinct(rng, n, self.num_pairs, half - 1)
        values = half + distinct(rng, n, self.num_pairs, half)
        for start in range(0, context, 2 * self.num_pairs):
            tokens[:, start : start + 2 * self.num_pairs : 2] = keys
            tokens[:, start + 1 : start + 2 * self.num_pairs : 2] = values

        self._ask(rng, tokens[:, context:], labels[:, context:], keys, values, half)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): a dictionary of the context's pairs, asked at every even offset after it."""
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        pairs = tokens[:, : 2 * self.num_pairs]
        asked = tokens[:, self.context_length :: 2]
        labels[:, self.context_length :: 2] = look_up(pairs[:, 0::2], pairs[:, 1::2], asked, self.vocab_size, IGNORE)
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "key", "value", "query" or "filler" for each token of (n, seq_len)."""
        roles = np.where(self.solve(tokens) != IGNORE, "query", "filler")
        roles[:, : self.context_length : 2] = "key"
        roles[:, 1 : self.context_length : 2] = "value"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The information about the values that the state must hold after the context, in bits.

        With M = V/2: log2[M!/(M-N)!] - N [h(p) + (1-p) log2(M-1)], at least 0, where p is the accuracy and h the binary
        entropy: what the ordered choice of values holds, less what Fano's inequality lets N answers leave open that are
        right with probability p on average. It binds every model whose answers depend on the context through its state
        alone, however the state was trained and whatever it spends on the keys (which the queries give back: a state
        that can also list them needs log2 C(V/2-1, N) more). Slightly below the N [log2 M - h(p) - (1-p) log2(M-1)]
        of independent values, as different values tell a little about one another.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        n, m = self.num_pairs, self.vocab_size // 2
        return recall_bits(accuracy, answers=n, choices=m, entropy=distinct_entropy(n, m))

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" is the recipe of figure 2 of Based, arXiv:2402.18668.

        "zoology-T64-N4" and so on are the sizes of figure 2 of Zoology, each with a model of its own.
        """
        # With 256 ids, mixers with an output gate have not begun to bind keys to values when the training ends.
        small = [cls(vocab_size=64, seq_len=64, num_pairs=n) for n in (4, 8, 16)]

        def paper(seq_len: int, num_pairs: int, fillers: Literal["papers", "zero"] = "papers") -> Mqar:
            return cls(vocab_size=8192, seq_len=seq_len, num_pairs=num_pairs, fillers=fillers)

        trained = {(64, 4): 100_000, (128, 8): 20_000, (256, 16): 20_000, (256, 32): 20_000, (256, 64): 20_000}
        tested = [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
        alone = [paper(seq_len, num_pairs, "zero") for seq_len, num_pairs in ((64, 4), (128, 8), (256, 16), (512, 64))]
        return {
            "small": Preset.same(small, 11_000),
            "paper": Preset(
                train=tuple((paper(*shape), n) for shape, n in trained.items()),
                test=tuple(paper(*shape) for shape in tested),
            ),
            **{f"zoology-T{t.seq_len}-N{t.num_pairs}": Preset.same([t], 100_000) for t in alone},
        }
