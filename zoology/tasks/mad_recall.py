"""The recall tasks of MAD: keys and their values over and over; from its second time on a key asks for its value."""

import math
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoology.tasks.base import IGNORE, Batch, Preset, Task, Tokens, register_task
from zoology.tasks.limits import check_accuracy, distinct_entropy
from zoology.tasks.mad import mad_presets
from zoology.tasks.rows import distinct, filled, first_equal


@register_task("in-context-recall")
class InContextRecall(Task):
    """Recall while reading: `key value` pairs in which keys come again; from its second time on, answer a key.

    Source: MAD, arXiv:2403.17844

    With V = vocab_size and T = seq_len, a sequence is T/2 pairs `[k v]`. Keys are uniform over 0..V/2-1, and each has
    one value in the whole sequence, uniform over V/2..V-1 (so two keys may share one). The last pair's key is uniform
    over the different keys shown before. A key that was shown before is labelled with its value.

    What differs from the public code: it drops the very last token, which nothing needs (T is odd there); it trains on
    every next token, also where none is determined, and scores only what is labelled here, on which this trains too.
    """

    vocab_size: int = Field(16, ge=4, description="number of token ids")
    seq_len: int = Field(128, ge=4, description="tokens in a sequence, two for each pair")

    @model_validator(mode="after")
    def _fits(self) -> "InContextRecall":
        if self.seq_len % 2:
            raise ValueError(f"seq_len = {self.seq_len}: must be even, as each pair takes two tokens")
        return self

    @property
    def slice_name(self) -> str:
        """Length and vocabulary: "T128-V16"."""
        return f"T{self.seq_len}-V{self.vocab_size}"

    @property
    def context_length(self) -> int:
        """Up to the last pair. Questions come all along; before the last one most keys may have to be known."""
        return self.seq_len - 2

    @property
    def _no_noise(self) -> int:
        """Tokens below this id are keys and values, the others noise."""
        return self.vocab_size

    @property
    def _keys(self) -> int:
        """How many keys there are; the ids below it."""
        return self._no_noise // 2

    def _draw_noise(self, rng: np.random.Generator, n: int) -> tuple[NDArray[np.bool_], Tokens]:
        """Which of the pairs are noise (n, T/2), and what stands there (n, T/2, 2)."""
        return np.zeros((n, self.seq_len // 2), dtype=bool), np.zeros((n, self.seq_len // 2, 2), dtype=np.int32)

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled at every key that was shown before."""
        return filled(partial(self._fill, rng), n, self.seq_len)

    def _fill(self, rng: np.random.Generator, tokens: Tokens, labels: Tokens) -> None:
        """Write a block of sequences and labels into arrays, labels being all `IGNORE` before."""
        n, pairs = len(tokens), self.seq_len // 2
        row, place = np.arange(n)[:, None], np.arange(pairs)
        meaning = rng.integers(self._keys, self._no_noise, size=(n, self._keys), dtype=np.int32)
        keys = rng.integers(self._keys, size=(n, pairs), dtype=np.int32)
        is_noise, noise = self._draw_noise(rng, n)
        first = first_equal(np.where(is_noise, -1 - place, keys))  # noise has codes of its own, so it never repeats
        fresh = (first == place) & ~is_noise
        last = _one_of(rng, fresh[:, :-1])
        keys[:, -1], first[:, -1] = keys[row[:, 0], last], last
        values = meaning[row, keys]
        tokens[:, 0::2] = np.where(is_noise, noise[:, :, 0], keys)
        tokens[:, 1::2] = np.where(is_noise, noise[:, :, 1], values)
        labels[:, 0::2] = np.where((first < place) & ~is_noise, values, IGNORE)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): read from left to right with a dictionary, which is asked before it is written to."""
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        memory = np.full((len(tokens), self._keys), IGNORE, dtype=np.int32)
        for place in range(0, self.seq_len, 2):
            row = np.flatnonzero(tokens[:, place] < self._keys)
            key = tokens[row, place]
            labels[row, place] = memory[row, key]
            memory[row, key] = tokens[row, place + 1]
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "key" (its first time), "query" (again), "value" or "noise" for each token of (n, seq_len)."""
        roles = np.where(self.solve(tokens) != IGNORE, "query", "key").astype("<U5")
        roles[:, 1::2] = "value"
        roles[tokens >= self._no_noise] = "noise"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float | None:
        """The least state before the last pair, in bits, of a model that never errs: K log2 M.

        M values are possible for each key, and K = min(V/2, T/2 - 1) keys may all have been shown. Any of them may be
        asked next, so two contexts in which one of them has another value need different states.

        Returns:
            None below accuracy 1: no bound known, since the questions that come early can be answered with less.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        check_accuracy(accuracy)
        if accuracy < 1:
            return None
        return min(self._keys, self.seq_len // 2 - 1) * math.log2(self._no_noise - self._keys)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" is MAD's baseline, "paper-..." its changes to it."""
        changes = {"vocab_size": (32, 64, 128), "seq_len": (256, 512, 1024)}
        small = Preset.same([cls(seq_len=64), cls(vocab_size=32, seq_len=64)], 15_000)
        return mad_presets(cls, small=small, changes=changes)


@register_task("noisy-recall")
class NoisyRecall(InContextRecall):
    """Recall through noise: as `in-context-recall`, but a share of the pairs are two tokens of noise.

    Source: MAD, arXiv:2403.17844

    The last `noise_vocab_size` token ids are noise; keys and values share the others as in `in-context-recall`. Each
    pair but the last is noise with probability `frac_noise`, except one, uniform, that never is, so that there is
    something to ask. (In the public code that one may be the last pair, and then all others may be noise, at which it
    fails.) A pair of noise is two tokens, independent and uniform; it carries no label.
    """

    vocab_size: int = Field(32, ge=5, description="number of token ids, those of the noise included")
    noise_vocab_size: int = Field(16, ge=1, description="how many of the token ids are noise")
    frac_noise: float = Field(0.2, ge=0, lt=1, description="the share of pairs that are noise")

    @model_validator(mode="after")
    def _leaves_keys(self) -> "NoisyRecall":
        if self._no_noise < 4:
            raise ValueError(
                f"noise_vocab_size = {self.noise_vocab_size}: vocab_size = {self.vocab_size} leaves "
                f"{max(0, self._no_noise)} tokens for keys and values; use at least {self.noise_vocab_size + 4}"
            )
        return self

    @property
    def slice_name(self) -> str:
        """Length, vocabulary, noise in it and share of noise: "T128-V32-n16-f0.2"."""
        return f"{super().slice_name}-n{self.noise_vocab_size}-f{self.frac_noise:g}"

    @property
    def _no_noise(self) -> int:
        return self.vocab_size - self.noise_vocab_size

    def _draw_noise(self, rng: np.random.Generator, n: int) -> tuple[NDArray[np.bool_], Tokens]:
        pairs = self.seq_len // 2
        is_noise = rng.random((n, pairs)) < self.frac_noise
        is_noise[np.arange(n), rng.integers(pairs - 1, size=n)] = False
        is_noise[:, -1] = False
        return is_noise, rng.integers(self._no_noise, self.vocab_size, size=(n, pairs, 2), dtype=np.int32)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" is MAD's baseline, "paper-..." its changes to it."""
        changes = {"vocab_size": (48, 80, 144), "seq_len": (256, 512, 1024), "frac_noise": (0.4, 0.6, 0.8)}
        small = Preset.same([cls(seq_len=64), cls(seq_len=64, frac_noise=0.6)], 15_000)
        return mad_presets(cls, small=small, changes=changes)


@register_task("fuzzy-recall")
class FuzzyRecall(Task):
    """Recall of phrases: keys and values of one to three tokens; where a key comes again, answer its whole value.

    Source: MAD, arXiv:2403.17844

    With V = vocab_size and K = (V-1) // 2 (rounded down), a sequence is padding (token V-1), then pairs of a key and
    its value, up to its end. A key is up to `key_size` different tokens of 0..K-1, a value up to `value_size` different
    tokens of K..V-2: first its size is drawn, uniform, then its tokens, uniform. With `keys` = "longest" every key has
    the full size, as in MAD's tests. A key has one value in the whole sequence. Pairs follow one another as long as
    they leave room for one of the longest; then comes a last pair, whose key is uniform over the different keys before
    it. Where a key was shown before, every token of its value is labelled at the token before that one.

    Keys and values share no token, so it is seen where they begin and end. Which sizes come is not determined (a key
    may turn out longer, a value may be over), so there the end carries no label, and a label says: if a token of the
    value follows here, it is this one. That depends on what came before alone.

    What differs from the public code: there, the last key may never have been shown, and is labelled all the same (it
    is to be put in at a place that may lie behind the last pair); padding is longer or shorter by a token or so.
    """

    vocab_size: int = Field(16, ge=5, description="number of token ids, one of them padding")
    seq_len: int = Field(128, ge=4, description="tokens in a sequence, padding included")
    key_size: int = Field(3, ge=1, description="tokens of the longest keys")
    value_size: int = Field(3, ge=1, description="tokens of the longest values")
    keys: Literal["varied", "longest"] = Field("varied", description="whether keys may be shorter than the longest")

    @model_validator(mode="after")
    def _fits(self) -> "FuzzyRecall":
        for name, size, there in (
            ("key_size", self.key_size, self._keys),
            ("value_size", self.value_size, self._values),
        ):
            if size > there:
                raise ValueError(f"{name} = {size}: vocab_size = {self.vocab_size} has {there} different tokens for it")
        if 2 * self._longest > self.seq_len:
            raise ValueError(
                f"seq_len = {self.seq_len}: must be at least {2 * self._longest}, twice a pair with key_size = "
                f"{self.key_size} and value_size = {self.value_size}"
            )
        if (self._keys + 1) ** self.key_size * self.value_size > 2**62:
            raise ValueError(f"key_size = {self.key_size}: too many different keys at vocab_size = {self.vocab_size}")
        return self

    @property
    def slice_name(self) -> str:
        """Length, vocabulary and sizes of keys and values: "T128-V16-k3-v3"; "k=3" where every key is that long."""
        key = f"k{'=' if self.keys == 'longest' else ''}{self.key_size}"
        return f"T{self.seq_len}-V{self.vocab_size}-{key}-v{self.value_size}"

    @property
    def context_length(self) -> int:
        """Up to where the last pair begins if it is of the longest."""
        return self.seq_len - self._longest

    @property
    def _keys(self) -> int:
        """How many tokens keys are made of; the ids below it."""
        return (self.vocab_size - 1) // 2

    @property
    def _values(self) -> int:
        """How many tokens values are made of; the ids from `_keys` on."""
        return self.vocab_size - 1 - self._keys

    @property
    def _longest(self) -> int:
        """Tokens of the longest pair."""
        return self.key_size + self.value_size

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled before every token of a value that was shown before."""
        return filled(partial(self._fill, rng), n, self.seq_len, token=self.vocab_size - 1)

    def _fill(self, rng: np.random.Generator, tokens: Tokens, labels: Tokens) -> None:
        """Write a block of sequences and labels into arrays: tokens all padding and labels all `IGNORE` before."""
        n, room = len(tokens), self.seq_len - self._longest  # the last pair has its own room
        shortest = (self.key_size if self.keys == "longest" else 1) + 1
        pairs = room // shortest + 1  # the last is the one that ends the sequence
        place = np.arange(pairs)
        key, key_size = self._motifs(rng, n, pairs, self.key_size, self._keys, self.keys == "longest")
        value, value_size = self._motifs(rng, n, pairs, self.value_size, self._values, False)

        first = first_equal(_codes(key, key_size, self._keys))
        key_size, value_size = (np.take_along_axis(size, first, axis=1) for size in (key_size, value_size))
        ends = np.cumsum(key_size + value_size, axis=1)
        shown = ends <= room
        shown[:, -1] = False
        last = _one_of(rng, shown & (first == place))
        source = np.concatenate([first[:, :-1], last[:, None]], axis=1)  # where a pair's key comes for the first time
        used = shown.copy()
        used[:, -1] = True

        key_size, value_size = (np.take_along_axis(size, source, axis=1) for size in (key_size, value_size))
        sizes = np.where(used, key_size + value_size, 0)
        begins = self.seq_len + np.cumsum(sizes, axis=1) - sizes - sizes.sum(axis=1, keepdims=True)
        row = np.broadcast_to(np.arange(n)[:, None], (n, pairs))
        again = used & (source < place)
        for token in range(self.key_size):
            here = used & (token < key_size)
            tokens[row[here], begins[here] + token] = key[row[here], source[here], token]
        for token in range(self.value_size):
            here = used & (token < value_size)
            at = begins + key_size + token
            tokens[row[here], at[here]] = self._keys + value[row[here], source[here], token]
            here &= again
            labels[row[here], at[here] - 1] = self._keys + value[row[here], source[here], token]

    @staticmethod
    def _motifs(
        rng: np.random.Generator, n: int, count: int, longest: int, bound: int, full: bool
    ) -> tuple[Tokens, NDArray[np.int64]]:
        """(n, count, longest) different tokens below `bound`, and how many of them each motif has (n, count)."""
        motifs = distinct(rng, n * count, longest, bound).reshape(n, count, longest)
        return motifs, rng.integers(longest if full else 1, longest + 1, size=(n, count))

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): each token of a value, from where the same key had its value for the first time.

        Every token of a value gets a code for the key before it and the place within the value; the first time that
        the code comes in a sequence tells the token, and later times are answered.
        """
        time = np.arange(self.seq_len)
        is_key, is_value = tokens < self._keys, (tokens >= self._keys) & (tokens < self.vocab_size - 1)
        code = np.zeros(len(tokens), dtype=np.int64)  # the key as a number in base K + 1, and how far its value is
        codes = np.empty(tokens.shape, dtype=np.int64)
        said = np.zeros(len(tokens), dtype=np.int64)
        for t in time:
            goes_on = is_key[:, t - 1] if t else np.zeros(len(tokens), dtype=bool)
            code = np.where(is_key[:, t], np.where(goes_on, code, 0) * (self._keys + 1) + tokens[:, t] + 1, code)
            said = np.where(is_value[:, t], said + 1, 0)
            codes[:, t] = np.where(is_value[:, t], code * self.value_size + said - 1, -1 - t)
        first = first_equal(codes)
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        known = np.take_along_axis(tokens, first, axis=1)
        labels[:, :-1] = np.where(first < time, known, IGNORE)[:, 1:]
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "key", "value", "padding", or "query" where a token of a value is asked for, for each of (n, seq_len)."""
        roles = np.where(tokens < self._keys, "key", "value").astype("<U7")
        roles[tokens == self.vocab_size - 1] = "padding"
        roles[self.solve(tokens) != IGNORE] = "query"
        return roles

    def state_bits(self, accuracy: float = 1.0) -> float | None:
        """A bound on the state at `context_length`, in bits, of a model that never errs.

        Among the sequences are those of the longest pairs only, q = T // (key_size + value_size) - 1 of them before
        the last. With min(q, number of such keys) different keys, any of which may be asked, each with any of the
        A = (V-1-K)! / (V-1-K-value_size)! longest values, they need that many times log2 A bits.

        Returns:
            None below accuracy 1: no bound known, since the questions that come early can be answered with less.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        check_accuracy(accuracy)
        if accuracy < 1:
            return None
        count = min(self.seq_len // self._longest - 1, math.perm(self._keys, self.key_size))
        return count * distinct_entropy(self.value_size, self._values)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" is MAD's baseline, "paper-..." its changes to it. Tested on the longest keys."""
        small = Preset.same([cls(seq_len=64, key_size=size, value_size=2) for size in (1, 2)], 15_000)
        changes = {"vocab_size": (32, 64, 128), "seq_len": (256, 512, 1024)}
        return mad_presets(cls, small=small, changes=changes, test={"keys": "longest"})


def _one_of(rng: np.random.Generator, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """In each row of (n, k) one of the allowed positions, uniform: (n,). Each row must allow one."""
    return np.argmax(np.where(allowed, rng.random(allowed.shape), -1.0), axis=1)


def _codes(motifs: Tokens, sizes: NDArray[np.int64], bound: int) -> NDArray[np.int64]:
    """One number for each motif (n, count, longest) of tokens below `bound`, of which `sizes` (n, count) count."""
    code = np.zeros(sizes.shape, dtype=np.int64)
    for token in range(motifs.shape[2]):
        code = np.where(token < sizes, code * (bound + 1) + motifs[:, :, token] + 1, code)
    return code
