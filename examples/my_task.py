"""The smallest task: sequences, their right answers, and how much of them must be kept."""

import numpy as np

from zoology import IGNORE, Batch, Preset, Task, register_task


@register_task("my-copy")
class MyCopy(Task):
    """Read n tokens, then say them again, one at each of n zeros: `a b c 0 0 0` is answered `a b c` at the zeros."""

    @property
    def context_length(self):
        return self.seq_len // 2

    def sample(self, rng, n):
        tokens = np.zeros((n, self.seq_len), np.int32)
        tokens[:, : self.context_length] = rng.integers(1, self.vocab_size, (n, self.context_length))
        return Batch(tokens, self.solve(tokens))

    def solve(self, tokens):
        labels = np.full(tokens.shape, IGNORE, np.int32)
        n = self.context_length
        labels[:, n : 2 * n] = tokens[:, :n]
        return labels

    def state_bits(self, accuracy=1.0):
        return self.context_length * np.log2(self.vocab_size - 1) if accuracy == 1 else None

    @classmethod
    def presets(cls):
        slices = [cls(vocab_size=32, seq_len=length) for length in (8, 16, 32)]
        return {"small": Preset.same(slices, 10_000)}
