"""What each mixer costs on one core, and how that grows with the sequence: `python benchmarks/mixers.py`.

Forward and backward pass of every registered mixer with its default settings, in float32 on random inputs, at two
lengths. Prints a row for each, and appends it to `benchmarks/results/mixers.csv` with the machine, the versions and the
date. Times are medians of turns that all mixers take in one process, in processor time, on one thread.
"""

import argparse
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would print two lines each time; read when torch loads

import torch
from common import RESULTS, append, machine, seconds

import zoology.architectures  # noqa: F401  its import registers the mixers
from zoology.architectures.base import ContextMixer, build_mixer, mixers
from zoology.registry import InputError, load_plugin
from zoology.training.memory import keep_freed_memory

BATCH, D_MODEL = 8, 64
LENGTHS = (256, 1024)
LINEAR = 1.25
"""The largest exponent of time, between these lengths, that is called linear. Softmax attention tends to 2 beyond them,
and comes to less here; what works in chunks is above 1 while a sequence is but a few of them."""

COLUMNS = (
    "date",
    "mixer",
    *(f"ms_{n}" for n in LENGTHS),
    "exponent",
    "linear",
    *(f"peak_mib_{n}" for n in LENGTHS),
    "batch",
    "d_model",
    "repeats",
    "processor",
    "cpus",
    "python",
    "torch",
    "zoology",
)


def passes(name: str, length: int) -> Callable[[], None]:
    """A function that runs a mixer forward and backward once. Raises what the mixer raises."""
    torch.manual_seed(0)
    mixer = build_mixer(name, D_MODEL)
    x = torch.randn(BATCH, length, D_MODEL, requires_grad=True)

    def run() -> None:
        y = mixer(x, length) if isinstance(mixer, ContextMixer) else mixer(x)
        y.backward(torch.ones_like(y))
        mixer.zero_grad()
        x.grad = None

    run()  # what is made once is made here
    return run


def peak_mib(run: Callable[[], None]) -> float:
    """The most memory that one call has in use at a time beyond what it found, in MiB, as torch's allocator counts."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    used = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        used += event.nbytes()
        peak = max(peak, used)
    return peak / 2**20


def measure(names: list[str], repeats: int) -> list[dict[str, Any]]:
    """A row for each mixer, less what is common to a run. One that raises has no numbers."""
    runs: dict[tuple[str, int], Callable[[], None]] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            runs |= {(name, length): passes(name, length) for length in LENGTHS}
        except Exception as error:  # the other mixers shall have their rows
            failed[name] = f"{type(error).__name__}: {error}"
    times: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            times[key].append(seconds(run))
    rows = []
    for name in names:
        row: dict[str, Any] = {"mixer": name, "batch": BATCH, "d_model": D_MODEL, "repeats": repeats}
        rows.append(row)
        if name in failed:
            print(f"{name:<24} {failed[name]}")
            continue
        short, long = (1e3 * statistics.median(times[name, length]) for length in LENGTHS)
        exponent = math.log(long / short) / math.log(LENGTHS[1] / LENGTHS[0])
        memory = [peak_mib(runs[name, length]) for length in LENGTHS]
        row |= {f"ms_{n}": f"{t:.4g}" for n, t in zip(LENGTHS, (short, long), strict=True)}
        row |= {f"peak_mib_{n}": f"{m:.4g}" for n, m in zip(LENGTHS, memory, strict=True)}
        row |= {"exponent": f"{exponent:.2f}", "linear": "yes" if exponent <= LINEAR else "no"}
        print(
            f"{name:<24}{short:>9.1f} ms{long:>9.1f} ms   T^{exponent:.2f} {'linear' if exponent <= LINEAR else '':<7}"
            f"{memory[0]:>8.1f} MiB{memory[1]:>8.1f} MiB",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="MIXER", help="default: all that are registered")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a file that registers mixers")
    parser.add_argument("--repeats", type=int, default=7, help="how often each is measured (default 7)")
    parser.add_argument("--give-back", action="store_true", help="freed memory goes back to the system")
    parser.add_argument("--out", type=Path, default=RESULTS / "mixers.csv", help="where the rows go")
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error(f"--repeats {given.repeats}: must be at least 1")
    try:
        for path in given.plugin:
            load_plugin(path)
        names = [name for name in given.names or mixers if mixers.get(name)]
    except InputError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    if not given.give_back:
        keep_freed_memory()  # as training does
    print(f"forward and backward, batch {BATCH}, d_model {D_MODEL}, at {LENGTHS[0]} and {LENGTHS[1]} tokens")
    append(measure(names, given.repeats), machine("torch"), COLUMNS, given.out)
    print(f"rows appended to {given.out}")


if __name__ == "__main__":
    main()
