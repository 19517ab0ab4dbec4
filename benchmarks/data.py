"""How fast MQAR is made, beside the usual public method, on one core: `python benchmarks/data.py`.

Prints rows per second, ratios and memory, and appends a row for each measurement to `benchmarks/results/data.csv`, with
the machine, the versions and the date. Both methods take turns in the same process, and times are those of the process
(not the clock), so that a busy machine slows both alike. Stated ratios are of medians.
"""

import argparse
import statistics
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, append, machine, seconds

from zoology.tasks.base import IGNORE, Batch
from zoology.tasks.mqar import Mqar

SLICES = ((64, 4, 20_000, 1000), (256, 64, 10_000, 1000), (1024, 256, 5_000, 500))
"""(T, N, rows of ours, rows of the public method) of each measured slice; the method's time is linear in its rows."""

COLUMNS = (
    "date",
    "what",
    "slice",
    "method",
    "value",
    "unit",
    "repeats",
    "processor",
    "cpus",
    "python",
    "numpy",
    "zoology",
)


def public_method(seed: int, n: int, vocab_size: int, seq_len: int, num_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """MQAR as it is usually made: the candidates of every row laid out, and a choice from each row by a Python call.

    The steps of the public generators, in our own words: keys, values and query slots are each drawn by
    `np.apply_along_axis` of `RandomState.choice` without replacement over a table of n rows (V/2 int64 wide for keys
    and values); everything is int64; every token that is 0 becomes a random one at last.

    Returns:
        (n, seq_len) tokens and labels, int64.
    """
    random = np.random.RandomState(seed)
    half, context = vocab_size // 2, 2 * num_pairs
    slots = (seq_len - context) // 2

    def choose(candidates: np.ndarray, **law: Any) -> np.ndarray:
        table = np.tile(candidates, (n, 1))
        return np.apply_along_axis(random.choice, 1, table, size=num_pairs, replace=False, **law)

    keys, values = choose(np.arange(1, half)), choose(np.arange(half, vocab_size))
    weights = np.arange(1, slots + 1) ** (0.01 - 1)
    asked = context + 2 * choose(np.arange(slots), p=weights / weights.sum())
    tokens = np.zeros((n, seq_len), dtype=np.int64)
    tokens[:, 0:context:2], tokens[:, 1:context:2] = keys, values
    labels = np.full((n, seq_len), IGNORE, dtype=np.int64)
    np.put_along_axis(tokens, asked, keys, axis=1)
    np.put_along_axis(labels, asked, values, axis=1)
    blank = tokens == 0
    tokens[blank] = random.randint(vocab_size, size=tokens.shape)[blank]
    return tokens, labels


def check(slice_: Mqar) -> None:
    """The two methods make the same thing: a transcription that makes something else would be no comparison."""
    tokens, labels = public_method(0, 200, slice_.vocab_size, slice_.seq_len, slice_.num_pairs)
    ours = slice_.sample(np.random.default_rng(0), 200)
    for made in (Batch(tokens.astype(np.int32), labels.astype(np.int32)), ours):
        assert ((made.labels != IGNORE).sum(axis=1) == slice_.num_pairs).all()
        asked = made.labels != IGNORE
        assert (slice_.solve(made.tokens)[asked] == made.labels[asked]).all()


def peak_over_output(sample: Callable[[], Batch]) -> float:
    """The most memory in use while a batch is made, in units of the batch."""
    tracemalloc.start()
    try:
        batch = sample()
        return tracemalloc.get_traced_memory()[1] / sum(np.asarray(part).nbytes for part in batch)
    finally:
        tracemalloc.stop()


def figure_2() -> int:
    """The whole training set of figure 2 of Based; how many rows that is."""
    rng = np.random.default_rng(0)
    train = Mqar.presets()["paper"].train
    return sum(len(task.sample(rng, n).tokens) for task, n in train)


def measure(repeats: int) -> list[dict[str, Any]]:
    """Every number, as rows of the results file less what is common to a run."""
    rows: list[dict[str, Any]] = []

    def note(what: str, slice_name: str, method: str, value: float, unit: str) -> None:
        rows.append({"what": what, "slice": slice_name, "method": method, "value": f"{value:.4g}", "unit": unit})
        print(f"{what:<16} {slice_name:<22} {method:<8} {value:>12,.4g} {unit}", flush=True)

    rng = np.random.default_rng(0)
    for seq_len, num_pairs, many, few in SLICES:
        task = Mqar(vocab_size=8192, seq_len=seq_len, num_pairs=num_pairs, fillers="papers")
        strict = task.model_copy(update={"fillers": "strict"})
        check(task)
        methods: dict[str, tuple[int, Callable[[], object]]] = {
            "papers": (many, lambda task=task, many=many: task.sample(rng, many)),
            "strict": (many, lambda task=strict, many=many: task.sample(rng, many)),
            "public": (few, lambda t=seq_len, k=num_pairs, few=few: public_method(0, few, 8192, t, k)),
        }
        times: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(repeats):
            for name, (_, function) in methods.items():
                times[name].append(seconds(function))
        rate = {name: n / statistics.median(times[name]) for name, (n, _) in methods.items()}
        name = f"V8192-T{seq_len}-N{num_pairs}"
        for method, value in rate.items():
            note("speed", name, method, value, "rows/s")
        for method in ("papers", "strict"):
            note("speed ratio", name, method, rate[method] / rate["public"], "x public")
        note("memory", name, "papers", peak_over_output(lambda task=task, n=many: task.sample(rng, n)), "x output")
        made = lambda t=seq_len, k=num_pairs, few=few: Batch(*public_method(0, few, 8192, t, k))  # noqa: E731
        note("memory", name, "public", peak_over_output(made), "x output")
    whole = [seconds(figure_2) for _ in range(repeats)]
    note("training set", "based-figure-2", "papers", statistics.median(whole), "s")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="how often each is measured (default 7)")
    parser.add_argument("--out", type=Path, default=RESULTS / "data.csv", help="where the rows go")
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error(f"--repeats {given.repeats}: must be at least 1")
    rows = [{**row, "repeats": given.repeats} for row in measure(given.repeats)]
    append(rows, machine("numpy"), COLUMNS, given.out)
    print(f"rows appended to {given.out}")


if __name__ == "__main__":
    main()
