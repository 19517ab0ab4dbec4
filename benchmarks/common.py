"""What the benchmarks share: time on the processor, the machine, and rows at the end of a file."""

import csv
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zoology

RESULTS = Path(__file__).parent / "results"


def seconds(function: Callable[[], object]) -> float:
    """Processor time of one call: a busy machine does not count."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def machine(*packages: str) -> dict[str, Any]:
    """What the numbers are made on and with: the processor, and versions of Python, these packages and Zoology."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = lines[0] if lines else model
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": model,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "zoology": zoology.__version__,
    }


def append(rows: Iterable[dict[str, Any]], common: dict[str, Any], columns: Sequence[str], path: Path) -> None:
    """Put rows, each with what is common to them, at the end of a results file, which is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({**common, **row} for row in rows)
