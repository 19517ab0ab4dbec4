"""The tasks of MAD that are no recall by key: selective copying, compression and memorization."""

from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoology.tasks.base import IGNORE, Batch, Preset, Task, Tokens, register_task
from zoology.tasks.limits import recall_bits
from zoology.tasks.mad import mad_presets
from zoology.tasks.rows import blocks, distinct, look_up


@register_task("selective-copying")
class SelectiveCopying(Task):
    """Copy what matters: a few tokens among many blanks; then repeat these tokens in the order in which they came.

    Source: MAD, arXiv:2403.17844

    With V = vocab_size, n = num_tokens_to_copy, T = seq_len, the blank V-2 and the mark V-1, a sequence is

    - the context: n tokens, independent and uniform over 0..V-3, with blanks between them, T - n - 1 tokens in all,
      or with `passes` the same part that often;
    - the mark, then n blanks; the i-th of these is labelled with the i-th token.

    The places of the tokens are, with `gaps`,

    - "uniform": any n different places, all choices equally likely;
    - "papers": as in the public code (which takes these, and only these, from the global random state): each blank
      falls before one of the n tokens, uniform, so that the gaps are much alike and the last token ends the context.
    """

    vocab_size: int = Field(16, ge=4, description="number of token ids, the blank and the mark among them")
    seq_len: int = Field(256, ge=3, description="tokens in a sequence")
    num_tokens_to_copy: int = Field(16, ge=1, description="tokens among the blanks (n)")
    gaps: Literal["uniform", "papers"] = Field("uniform", description="how the tokens lie among the blanks")
    passes: int = Field(1, ge=1, description="how often the context is shown")

    @model_validator(mode="after")
    def _fits(self) -> "SelectiveCopying":
        n, t = self.num_tokens_to_copy, self.seq_len
        need = (self.passes + 1) * n + 1
        if need > t:
            raise ValueError(
                f"num_tokens_to_copy = {n}: with passes = {self.passes} these need {need} tokens, and seq_len = {t}"
            )
        if self.context_length % self.passes:
            raise ValueError(
                f"passes = {self.passes}: the {self.context_length} tokens that seq_len = {t} leaves for the context "
                f"are no multiple of it; use a seq_len of {t - self.context_length % self.passes}"
            )
        return self

    @property
    def slice_name(self) -> str:
        """Length, vocabulary and tokens to copy, then what is not the default: "T256-V16-n16-papers"."""
        name = f"T{self.seq_len}-V{self.vocab_size}-n{self.num_tokens_to_copy}"
        name += f"-P{self.passes}" if self.passes != 1 else ""
        return name + (f"-{self.gaps}" if self.gaps != "uniform" else "")

    @property
    def context_length(self) -> int:
        """Up to the mark."""
        return self.seq_len - self.num_tokens_to_copy - 1

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled at the blanks behind the mark."""
        blank, mark = self.vocab_size - 2, self.vocab_size - 1
        count, shown = self.num_tokens_to_copy, self.context_length // self.passes
        tokens = np.full((n, self.seq_len), blank, dtype=np.int32)
        labels = np.full((n, self.seq_len), IGNORE, dtype=np.int32)
        for block in blocks(n):
            rows = block.stop - block.start
            data = rng.integers(blank, size=(rows, count), dtype=np.int32)
            if self.gaps == "uniform":
                places = np.sort(distinct(rng, rows, count, shown), axis=1)
            else:
                before = rng.multinomial(shown - count, np.full(count, 1 / count), size=rows)
                places = np.cumsum(before + 1, axis=1) - 1
            context = np.full((rows, shown), blank, dtype=np.int32)
            np.put_along_axis(context, places, data, axis=1)
            tokens[block, : self.context_length] = np.tile(context, self.passes)
            labels[block, -count:] = data
        tokens[:, self.context_length] = mark
        return Batch(tokens, labels)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): what is no blank in the context, shown once, in order."""
        context = tokens[:, : self.context_length // self.passes]
        _, place = np.nonzero(context != self.vocab_size - 2)  # row by row, from left to right
        place = place.reshape(len(tokens), self.num_tokens_to_copy)
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        labels[:, -self.num_tokens_to_copy :] = np.take_along_axis(context, place, axis=1)
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "value", "filler" (a blank), "mark" or "query" for each token of (n, seq_len)."""
        roles = np.where(tokens < self.vocab_size - 2, "value", "filler")
        roles[:, self.context_length] = "mark"
        roles[:, self.context_length + 1 :] = "query"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The least state at the end of the context, in bits, of any model that is right this often.

        n independent tokens, uniform over V-2, are each asked for once: n log2(V-2) at accuracy 1, below it the rate
        of a uniform source at that frequency of errors.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        return recall_bits(accuracy, answers=self.num_tokens_to_copy, choices=self.vocab_size - 2)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" is MAD's baseline, "paper-..." its changes to it.

        On "small" attention reaches 95 % at d_model = 32 with rotary positions, and 79 % without: which token is the
        i-th has to be counted before it can be looked up, and there is one attention for both.
        """
        slices = [cls(vocab_size=10, seq_len=t, num_tokens_to_copy=n) for t, n in ((16, 2), (24, 2), (16, 3))]
        small = Preset.same(slices, 30_000)
        changes = {"vocab_size": (32, 64, 128), "seq_len": (512, 1024), "num_tokens_to_copy": (32, 64, 96)}
        return mad_presets(cls, small=small, changes=changes, paper={"gaps": "papers"})


@register_task("compression")
class Compression(Task):
    """Reproduce what is gone: random tokens and a mark; then answer, for each position asked, which token stood there.

    Source: MAD, arXiv:2403.17844

    With S = symbols and L = length, the vocabulary is S symbols (0..S-1), a mark (S), and L positions (S+1..S+L). A
    sequence is

    - the context: L symbols, independent and uniform, and the mark; the whole repeated `passes` times;
    - the question part: every position once, in random order, labelled with the symbol that stood there.

    In MAD this is an auto-encoder: layers read L symbols and the mark, and a perceptron, given what the last layer put
    out at the mark and a position's sinusoid, names the symbol at that position, for all positions at once (and, which
    says nothing, the mark for its own). Here it is a sequence task for any model: positions are asked as tokens, and
    what was read may reach the answer through whatever the model keeps, which is the state measured after the mark,
    and not through one vector of width d alone. MAD's vocabulary counts the mark (its 16 is S = 15 here) and its
    length too (its 32 is L = 31).
    """

    symbols: int = Field(15, ge=2, description="different tokens that are to be kept (S)")
    length: int = Field(31, ge=1, description="how many are to be kept (L)")
    passes: int = Field(1, ge=1, description="how often the context is shown")

    # Properties in place of the fields of Task, as they follow from the two above.
    vocab_size: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: self.symbols + 1 + self.length, doc="Number of token ids: symbols, the mark and positions."
    )
    seq_len: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: self.context_length + self.length, doc="Tokens in a sequence: the context, then every position."
    )

    @property
    def slice_name(self) -> str:
        """Symbols to keep and how many there are to choose from: "L31-S15"; then the passes, if more than one."""
        return f"L{self.length}-S{self.symbols}" + (f"-P{self.passes}" if self.passes != 1 else "")

    @property
    def context_length(self) -> int:
        """Up to the last mark, and with it."""
        return self.passes * (self.length + 1)

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled at every position asked."""
        tokens = np.empty((n, self.seq_len), dtype=np.int32)
        labels = np.full((n, self.seq_len), IGNORE, dtype=np.int32)
        for block in blocks(n):
            rows = block.stop - block.start
            shown = rng.integers(self.symbols, size=(rows, self.length + 1), dtype=np.int32)
            shown[:, -1] = self.symbols
            asked = distinct(rng, rows, self.length, self.length)
            tokens[block, : self.context_length] = np.tile(shown, self.passes)
            tokens[block, self.context_length :] = self.symbols + 1 + asked
            labels[block, self.context_length :] = np.take_along_axis(shown, asked, axis=1)
        return Batch(tokens, labels)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): a dictionary from the positions' ids to the context's symbols, asked in turn."""
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        names = np.tile(np.arange(self.symbols + 1, self.vocab_size, dtype=np.int32), (len(tokens), 1))
        asked = tokens[:, self.context_length :]
        answers = look_up(names, tokens[:, : self.length], asked, self.vocab_size, IGNORE)
        labels[:, self.context_length :] = answers
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "value", "mark" or "query" for each token of (n, seq_len)."""
        row = (["value"] * self.length + ["mark"]) * self.passes + ["query"] * self.length
        return np.tile(np.array(row), (len(tokens), 1))

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The least state after the mark, in bits, of any model that is right this often.

        L independent symbols, uniform over S, are each asked for once: L log2 S at accuracy 1, below it the rate of a
        uniform source at that frequency of errors.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        return recall_bits(accuracy, answers=self.length, choices=self.symbols)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" is MAD's baseline, "paper-..." its changes to it.

        On "small" attention reaches 97 % at d_model = 32 with rotary positions, and 92 % without: in so short a row the
        short convolution tells most places by the ends that it sees. In longer ones it cannot.
        """
        small = Preset.same([cls(symbols=4, length=length) for length in (4, 6)], 30_000)
        return mad_presets(cls, small=small, changes={"symbols": (31, 63, 127), "length": (63, 127, 255)})


@register_task("memorization")
class Memorization(Task):
    """Know by heart: keys whose values are the same in all sequences and never shown; answer each key's value.

    Source: MAD, arXiv:2403.17844

    With V = vocab_size, K = (V-1) // 2 (rounded down) and the mark V-1, a sequence is seq_len / 2 times `[key mark]`,
    keys independent and uniform over 0..K-1, labelled at the mark with the key's value. The values, different ones of
    K..V-2, are a table that depends on V and `table_seed` alone: what is learnt is in the weights, not in the state.

    MAD trains on 256 sequences of 16 keys, 4096 in all. With V = 8192 that leaves about 37 % of the 4095 keys out
    (with 4096, 13 %; from 1024 on next to none), whose values a model can only guess; so 100 % is out of reach there.
    """

    vocab_size: int = Field(256, ge=5, description="number of token ids, the mark among them")
    seq_len: int = Field(32, ge=2, description="tokens in a sequence, two for each key")
    table_seed: int = Field(12345, ge=0, description="which table of values")

    @model_validator(mode="after")
    def _fits(self) -> "Memorization":
        if self.seq_len % 2:
            raise ValueError(f"seq_len = {self.seq_len}: must be even, as each key is followed by a mark")
        return self

    @property
    def slice_name(self) -> str:
        """Length and vocabulary, then the table, if it is not the default: "T32-V256", "T32-V256-s7"."""
        name = f"T{self.seq_len}-V{self.vocab_size}"
        return name + (
            f"-s{self.table_seed}" if self.table_seed != type(self).model_fields["table_seed"].default else ""
        )

    @property
    def context_length(self) -> int:
        """Up to the last mark: the key before it is all that a state must hold."""
        return self.seq_len - 1

    @property
    def _keys(self) -> int:
        """How many keys there are; the ids below it."""
        return (self.vocab_size - 1) // 2

    @property
    def table(self) -> Tokens:
        """The value of each key: (K,) int32, read-only."""
        return _table(self.table_seed, self._keys, self.vocab_size - 1)

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled at the marks."""
        tokens = np.full((n, self.seq_len), self.vocab_size - 1, dtype=np.int32)
        labels = np.full((n, self.seq_len), IGNORE, dtype=np.int32)
        tokens[:, 0::2] = rng.integers(self._keys, size=(n, self.seq_len // 2), dtype=np.int32)
        labels[:, 1::2] = self.table[tokens[:, 0::2]]
        return Batch(tokens, labels)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): the table's value for the key before each mark."""
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        row, time = np.nonzero(tokens == self.vocab_size - 1)
        labels[row, time] = self.table[tokens[row, time - 1]]
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "key" or "query" (the mark, at which its value is asked for) for each token of (n, seq_len)."""
        return np.where(tokens == self.vocab_size - 1, "query", "key")

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The least state before a mark, in bits, of any model that is right this often.

        It must tell the key just read, uniform over K, from the others, as no two have the same value: log2 K at
        accuracy 1, below it the rate of a uniform source. The table itself needs none, being in the weights.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        return recall_bits(accuracy, answers=1, choices=self._keys)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" is MAD's baseline of 256 training sequences, "paper-..." its changes to it."""
        changes = {"vocab_size": (512, 1024, 2048, 4096, 8192)}
        small = Preset.same([cls(vocab_size=128)], 30_000)
        return mad_presets(cls, small=small, changes=changes, examples=256, fewer=())


@lru_cache(maxsize=8)
def _table(seed: int, keys: int, end: int) -> Tokens:
    """The values, different ones of keys..end-1, of `keys` keys."""
    values = np.random.Generator(np.random.PCG64(seed)).permutation(np.arange(keys, end, dtype=np.int32))[:keys]
    values.flags.writeable = False
    return values
