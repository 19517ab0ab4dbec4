"""What no model can do with so little state, and what the simplest memory does with it.

Two references for a frontier. The first is a law: the task's own `state_bits`, which the rows carry as `limits`. The
second is a yardstick: the linear outer-product memory, the state of linear attention with nothing learnt about what to
keep. A model below it wastes state; one above it codes better than random keys can.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from zoology.registry import InputError

FLOAT32 = 4
"""Bytes of an element of the outer-product memory."""

_SOLVED = 0.9995
_DIMS = tuple(dict.fromkeys(round(2 * 1.2**k) for k in range(40)))  # 2 to about 2500
_VALUE_SETS = 4  # drawn anew this often, as the vectors of the values are shared by all queries of a set


def task_limit(rows: pd.DataFrame, slices: Sequence[str] | None = None) -> pd.DataFrame:
    """The least state, in bytes, of any model that recalls so much on average over the slices.

    A model with S bytes at the end of each slice's context is right on slice i less often than p_i, the least tabulated
    accuracy that needs more than 8 S bits (see `zoology.tasks.limits.tabulate`); so its mean is less than that of the
    p_i. Where a slice does not tell of a limit, or 8 S bits suffice for all of it, nothing is forbidden: p_i = 1.

    Args:
        rows: of `records.load_runs`, of one task.
        slices: the test slices that are averaged over, as for `frontier.points`. All by default.

    Returns:
        A staircase, `state_bytes` and `recall` both rising: no model recalls more than `recall` with less than
        `state_bytes`, and that of the last step allows all. Empty where no slice tells of a limit.
    """
    tables = slice_limits(rows, slices)
    stairs: dict[float, int] = {}
    for size in sorted({_enough(bits) for table in tables.values() for _, bits in table if bits > 0}):
        most = float(np.mean([_allowed(table, 8 * (size - 1)) for table in tables.values()]))
        stairs[round(most, 12)] = size  # the last, which forbids most
    found = pd.DataFrame(stairs.items(), columns=["recall", "state_bytes"])[["state_bytes", "recall"]]
    return found.sort_values("state_bytes", ignore_index=True)


def slice_limits(rows: pd.DataFrame, slices: Sequence[str] | None = None) -> dict[str, list[tuple[float, float]]]:
    """(accuracy, bits) of each test slice, both rising. Rows without a table have the limit of no error alone.

    Args:
        rows: of `records.load_runs`, of one task.
        slices: all by default.
    """
    test = rows[rows["split"] == "test"].drop_duplicates("slice")
    wanted = list(slices) if slices else test["slice"].tolist()
    found: dict[str, list[tuple[float, float]]] = {}
    for row in test[test["slice"].isin(wanted)].to_dict("records"):
        bits = row.get("limit_bits")
        whole = [(1.0, float(bits))] if isinstance(bits, int | float) and bits > 0 else []  # NaN is not above 0
        found[row["slice"]] = [(float(p), float(b)) for p, b in row.get("limits") or []] or whole
    return found


def _enough(bits: float) -> int:
    """The least number of bytes that holds so many bits."""
    return math.ceil(bits / 8)


def _allowed(table: Sequence[tuple[float, float]], bits: float) -> float:
    return next((accuracy for accuracy, needed in table if needed > bits), 1.0)


def outer_product(pairs: Sequence[int], choices: int, rng: np.random.Generator) -> pd.DataFrame:
    """Recall of a linear outer-product memory with random unit keys, over its size.

    The state is S = sum_i v_i k_i^T, d x d, over N pairs of unit vectors; a key is answered with the value whose vector
    has the largest inner product with S k, out of all `choices`, stored or not. Nothing is learnt. It is simulated: the
    noise is not normal enough at small d for a formula.

    Source: Linear transformers are secretly fast weight programmers, arXiv:2102.11174

    Args:
        pairs: N of each slice; the mean over them is told.
        choices: how many values there are: half of MQAR's vocabulary.
        rng: draws keys and values.

    Returns:
        `dim` (d), `state_bytes` (4 d^2), `recall`, up to the first size that solves every slice.
    """
    recall = {n: {} for n in pairs}
    for n in recall:
        for dim in _DIMS:
            recall[n][dim] = simulate_outer_product(n, choices, dim, rng)
            if recall[n][dim] >= _SOLVED:
                break
    last = max(max(by_dim) for by_dim in recall.values())
    dims = [dim for dim in _DIMS if dim <= last]
    means = [float(np.mean([recall[n].get(dim, 1.0) for n in pairs])) for dim in dims]
    return pd.DataFrame({"dim": dims, "state_bytes": [FLOAT32 * d * d for d in dims], "recall": means})


def simulate_outer_product(pairs: int, choices: int, dim: int, rng: np.random.Generator, queries: int = 1024) -> float:
    """The share of right answers of one such memory, over at least so many queries; see `outer_product`.

    Raises:
        InputError: there are more pairs than values, or no pair, or no dimension.
    """
    if not 1 <= pairs <= choices or dim < 1:
        raise InputError(
            f"pairs = {pairs}, choices = {choices}, dim = {dim}: each at least 1, and pairs at most choices"
        )
    right = total = 0
    for _ in range(_VALUE_SETS):
        vectors = _unit(rng, choices, dim)
        for _ in range(max(1, queries // (pairs * _VALUE_SETS))):
            stored = rng.permutation(choices)[:pairs]
            keys = _unit(rng, pairs, dim)
            answers = keys @ (vectors[stored].T @ keys).T  # (N, d): S k of every key
            right += int((np.argmax(answers @ vectors.T, axis=1) == stored).sum())
            total += pairs
    return right / total


def _unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def outer_product_of(rows: pd.DataFrame, rng: np.random.Generator, slices: Sequence[str] | None = None) -> pd.DataFrame:
    """`outer_product` at the slices of MQAR rows; empty where they are not of one vocabulary, or of another task.

    Args:
        rows: of `records.load_runs`, of one task.
        rng: draws keys and values.
        slices: all by default.
    """
    test = rows[rows["split"] == "test"].drop_duplicates("slice")
    if slices:
        test = test[test["slice"].isin(list(slices))]
    params = [p or {} for p in test["params"]]
    choices = {p.get("vocab_size", 0) // 2 for p in params}
    if (
        set(test["task"]) != {"mqar"}
        or len(choices) > 1
        or not all({"num_pairs", "vocab_size"} <= set(p) for p in params)
    ):
        return pd.DataFrame(columns=["dim", "state_bytes", "recall"])
    return outer_product([p["num_pairs"] for p in params], choices.pop(), rng)
