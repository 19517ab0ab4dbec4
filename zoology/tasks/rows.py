"""Draws and look-ups that go row by row over a batch, without a Python loop over its examples."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from zoology.tasks.base import IGNORE, Batch, Tokens

Integers = NDArray[np.int32]


def blocks(n: int, size: int = 1024) -> Iterator[slice]:
    """Slices that cut n rows into blocks, so that what is made on the way fits a cache and not just the memory."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def filled(
    fill: Callable[[Tokens, Tokens], None], n: int, seq_len: int, *, token: int | None = None, size: int = 1024
) -> Batch:
    """n sequences (n, seq_len) that `fill(tokens, labels)` writes block by block, into views of the whole.

    Args:
        fill: writes the rows of a block. Its labels are all `IGNORE` before.
        n, seq_len: the size of the whole.
        token: what the tokens are before; None: anything, for a `fill` that writes every one.
        size: rows of a block.
    """
    batch = Batch(np.empty((n, seq_len), np.int32), np.empty((n, seq_len), np.int32))
    for block in blocks(n, size):
        if token is not None:
            batch.tokens[block] = token
        batch.labels[block] = IGNORE
        fill(batch.tokens[block], batch.labels[block])
    return batch


def words(rng: np.random.Generator, count: int, bits: int) -> NDArray[np.unsignedinteger]:
    """Uniform unsigned numbers (count,) of 16 or 32 bits, cut from words of 64: random bits are what costs most."""
    drawn = rng.integers(2**64 - 1, size=-(-count * bits // 64), dtype=np.uint64, endpoint=True)
    return drawn.astype("<u8", copy=False).view(f"<u{bits // 8}")[:count]


def below(rng: np.random.Generator, bound: int, size: tuple[int, ...]) -> Integers:
    """Independent uniform numbers below `bound`, which is at most 2**31.

    Source: Lemire, Fast Random Integer Generation in an Interval, arXiv:1805.10941

    A word w of so many bits becomes the upper half of w * bound; words whose lower half is below 2**bits mod bound are
    drawn again, and all numbers are left with equally many.

    Returns:
        int32 in the shape `size`.
    """
    count = math.prod(size)
    bits = 16 if bound <= 2**13 else 32
    products = words(rng, count, bits).astype(f"u{bits // 4}")
    products *= bound
    drawn = (products >> bits).astype(np.int32)
    if surplus := 2**bits % bound:
        again = np.flatnonzero(products.astype(f"u{bits // 8}") < surplus)
        if again.size:
            drawn[again] = below(rng, bound, again.shape)
    return drawn.reshape(size)


def distinct(rng: np.random.Generator, n: int, k: int, bound: int) -> Integers:
    """n rows of k different numbers below `bound`, every ordered choice equally likely. Needs k <= bound.

    Each row is the first k different ones of a few more numbers drawn with repeats; where there are fewer, the row is
    drawn again. How many differ says nothing about which they are, so no choice is favoured.

    Returns:
        (n, k) int32.
    """
    if 2 * k > bound:  # most numbers are taken, and drawing would seldom hit a free one
        everything = np.tile(np.arange(bound, dtype=np.int32), (n, 1))
        return rng.permuted(everything, axis=1)[:, :k]
    lost = -bound * math.log1p(-k / bound) - k  # repeats on the way to k different numbers, on average
    count = k + (math.ceil(lost + 3 * math.sqrt(lost)) if lost > 0.02 else 0)
    width, shift = (bound - 1).bit_length(), (count - 1).bit_length()
    code = np.int32 if width + shift < 31 else np.int64  # narrow numbers sort several times faster
    # Number and position in one code: sorted, equal numbers are neighbours and the first position leads. Position
    # and number, with those that came before at the end: sorted, what is to be kept leads.
    codes = below(rng, bound, (n, count)).astype(code, copy=False)
    codes <<= shift
    codes |= np.arange(count, dtype=code)
    codes.sort(axis=1)
    repeated = (codes[:, 1:] ^ codes[:, :-1]) < 1 << shift
    ordered = codes >> shift
    codes &= (1 << shift) - 1
    codes <<= width
    ordered |= codes
    ordered[:, 1:] |= repeated.astype(code) << (width + shift)
    ordered.sort(axis=1)
    short = np.flatnonzero(ordered[:, k - 1] >> (width + shift))
    drawn = (ordered[:, :k] & ((1 << width) - 1)).astype(np.int32, copy=False)
    if short.size:
        drawn[short] = distinct(rng, short.size, k, bound)
    return drawn


FEW = 8
"""Up to so many taken numbers, comparing with each of them beats a table of all numbers."""


def excluding(rng: np.random.Generator, taken: Integers, count: int, bound: int) -> Integers:
    """For each row, `count` independent uniform numbers below `bound` that are none of those in its row of `taken`.

    Args:
        taken: (n, k) different numbers of 0..bound-1 in each row, k < bound.

    Returns:
        (n, count) int32.
    """
    n, k = taken.shape
    if k < FEW:
        drawn = below(rng, bound - k, (n, count))  # at first the rank among the free numbers
        free_below = np.sort(taken, axis=1) - np.arange(k, dtype=taken.dtype)  # how many free ones are below each
        for block in blocks(n, size=max(1, 2**14 // max(1, count))):  # what is compared stays in the cache
            ranks = drawn[block].copy()
            for column in range(k):
                drawn[block] += ranks >= free_below[block, column, None]
        return drawn
    drawn = np.empty((n, count), dtype=np.int32)
    for block in blocks(n, size=max(1, 2**21 // bound)):
        drawn[block] = _excluding_many(rng, taken[block], count, bound)
    return drawn


def _excluding_many(rng: np.random.Generator, taken: Integers, count: int, bound: int) -> Integers:
    """`excluding` by a table of all numbers: by rank where most are taken, otherwise drawn until all are free."""
    n, k = taken.shape
    is_taken = np.zeros(n * bound, dtype=bool)
    start = bound * np.arange(n, dtype=np.int32)[:, None]
    is_taken[(taken + start).ravel().astype(np.intp)] = True  # indices of one dimension and of this type are fastest
    if 2 * k > bound:
        free = (np.flatnonzero(~is_taken).reshape(n, bound - k) - start).astype(np.int32)
        return np.take_along_axis(free, below(rng, bound - k, (n, count)), axis=1)
    drawn = below(rng, bound, (n, count))
    hit = np.flatnonzero(is_taken.take((drawn + start).astype(np.intp), mode="wrap"))
    while hit.size:
        again = below(rng, bound, hit.shape)
        drawn.ravel()[hit] = again
        hit = hit[is_taken.take(hit // count * bound + again)]
    return drawn


def look_up(keys: Integers, values: Integers, asked: Integers, bound: int, missing: int) -> Integers:
    """In each row, what a dictionary from `keys` to `values` answers to each of `asked`.

    Args:
        keys, values: (n, k); of equal keys the last counts.
        asked: (n, m).
        bound: keys and asked are below it.
        missing: the answer to what is no key.

    Returns:
        (n, m) int32.
    """
    answers = np.empty(asked.shape, dtype=np.int32)
    for block in blocks(len(asked), size=max(1, 2**20 // bound)):
        row = np.arange(block.stop - block.start)[:, None]
        memory = np.full((len(row), bound), missing, dtype=np.int32)
        memory[row, keys[block]] = values[block]
        answers[block] = memory[row, asked[block]]
    return answers


def power_slots(rng: np.random.Generator, n: int, count: int, slots: int, power: float) -> NDArray[np.int64]:
    """n rows of `count` different slots 0, 1, ..., drawn one after another with p(slot) ~ (slot + 1)^(power - 1).

    Exponential clocks with rates p ring in that very order; each is the logarithm of a uniform number of 32 bits. In
    float64, so that roundings that differ between machines do not come up. Needs count <= slots.

    Returns:
        (n, count) int64, in the order drawn.
    """
    clocks = words(rng, n * slots, 32).reshape(n, slots) + 0.5
    clocks *= 2.0**-32
    np.log(clocks, out=clocks)
    clocks *= -(np.arange(1, slots + 1) ** (1 - power))
    # Positive floats are ordered as their bits are: with the slot in the last bits, plain sorting is enough.
    mask = (1 << (slots - 1).bit_length()) - 1
    codes = clocks.view(np.int64)
    codes &= ~mask
    codes |= np.arange(slots)
    codes.sort(axis=1)
    return codes[:, :count] & mask


def first_equal(codes: NDArray[np.integer]) -> NDArray[np.int64]:
    """For each element of (n, k) the first position in its row that holds the same code: its own where it is new."""
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, axis=1)
    starts = np.zeros(codes.shape, dtype=np.int64)  # of each run of equal codes, where it starts in `ordered`
    starts[:, 1:] = np.where(ordered[:, 1:] != ordered[:, :-1], np.arange(1, codes.shape[1]), 0)
    starts = np.maximum.accumulate(starts, axis=1)
    first = np.empty_like(order)
    np.put_along_axis(first, order, np.take_along_axis(order, starts, axis=1), axis=1)
    return first


def distinct_words(rng: np.random.Generator, n: int, k: int, length: int, letters: int) -> Integers:
    """n rows of k different words, each of `length` numbers below `letters`; every ordered choice equally likely.

    Needs k <= letters**length < 2**62.

    Returns:
        (n, k, length) int32.
    """
    count = letters**length
    if count < 2**31:
        codes = distinct(rng, n, k, count).astype(np.int64)
    else:
        codes = rng.integers(count, size=(n, k))
        rows = np.arange(n)
        while rows.size:  # rare, as the words are many: a row in which one comes twice is drawn again as a whole
            ordered = np.sort(codes[rows], axis=1)
            rows = rows[(ordered[:, 1:] == ordered[:, :-1]).any(axis=1)]
            codes[rows] = rng.integers(count, size=(rows.size, k))
    return (codes[:, :, None] // letters ** np.arange(length) % letters).astype(np.int32)


def places(rng: np.random.Generator, n: int, count: int, width: int, length: int) -> NDArray[np.int64]:
    """For each of n rows, where `count` stretches of `width` start that do not overlap within `length` positions.

    Every such choice, with every order of the stretches, is equally likely. Needs count * width <= length.

    Returns:
        (n, count) int64, in no order.
    """
    slots = distinct(rng, n, count, length - count * (width - 1)).astype(np.int64)
    return slots + (width - 1) * slots.argsort(axis=1).argsort(axis=1)
