"""Small sweeps for the tests: specs, results made by hand, and real drivers in processes of their own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import zoology
from zoology.record import ReplicaResult, Score, TrialResult, TrialSpec
from zoology.sweeps.space import Request, expand

CLI = Path(zoology.__file__).parents[1] / "cli.py"

TINY = [
    "--train-examples",
    "640",
    "--test-examples",
    "64",
    "--d-model",
    "16",
    "--learning-rates",
    "1e-2",
    "--batch-size",
    "64",
]
"""Ten steps on the default task: some 0.3 s."""


def request(*windows: int, **fields) -> Request:
    """Sliding windows of these widths, on one slice of four pairs."""
    given = {
        "architectures": ("sliding-window",),
        "settings": {"window": windows or (2, 4, 8)},
        "d_model": (16,),
        "task_params": {"num_pairs": (4,)},
        "training": {"learning_rates": (1e-2,), "batch_size": 64},
        "train_examples": 640,
        "test_examples": 64,
        "reference": False,
    }
    return Request(**(given | fields))


def trials(*windows: int, **fields) -> tuple[TrialSpec, ...]:
    return expand(request(*windows, **fields))


def result(
    spec: TrialSpec, accuracy: float | None = 0.5, seconds: float = 1.0, status: str = "ok", valid: float | None = None
) -> TrialResult:
    """A finished trial whose replicas all did alike. `valid` is the accuracy on validation where it is another."""

    def score(split: str, name: str) -> Score:
        shown = valid if split == "valid" and valid is not None else accuracy
        return Score(
            split=split,
            slice=name,
            accuracy=shown,
            loss=1.0,
            accuracy_last=shown,
            loss_last=1.0,
            examples=64,
            test_hash="0" * 16,
            state_elements=64,
            state_bytes=256,
            state_parts={"kv": {"float32": 256}},
            limit_bits=40.0,
        )

    splits = [("valid", part.name) for part in spec.valid] + [("test", part.name) for part in spec.test]
    replicas = [
        ReplicaResult(
            learning_rate=rate,
            seed=seed,
            status=status,
            scores=tuple(score(*place) for place in splits),
            steps=10,
            best_step=10,
            seconds=seconds,
        )
        for rate, seed in spec.replicas
    ]
    return TrialResult(spec=spec, replicas=tuple(replicas), parameters=1000)


def rows_of(run: Path) -> list[dict]:
    """What is on disk, but for the timings."""
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


class Driver:
    """`cli.py sweep` in a process and a session of its own, as from a terminal.

    Attributes:
        lines: what it has printed, standard error included.
        children: id -> command of the processes under it, as of the first signal.
    """

    def __init__(self, *arguments: str, cwd: Path, **env: str):
        self.lines: list[str] = []
        self.children: dict[int, str] = {}
        self.process = subprocess.Popen(
            [sys.executable, str(CLI), "sweep", *TINY, *arguments],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(CLI.parent), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell lets what it starts in the background ignore Ctrl-C, and these tests with it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def until(self, pattern: str, times: int = 1) -> "Driver":
        """Wait until so many of its lines match."""
        while times:
            line = self.process.stdout.readline()
            assert line, "it ended early:\n" + "".join(self.lines)
            self.lines.append(line)
            times -= bool(re.search(pattern, line))
        return self

    def kill(self, number: int, group: bool = False) -> "Driver":
        """Send a signal to it alone, or to its whole process group as a terminal does."""
        self.children = self.children or processes_under(self.process.pid)
        (os.killpg if group else os.kill)(self.process.pid, number)
        return self

    def wait(self) -> int:
        """Its exit code, once all is read."""
        self.lines += self.process.stdout.readlines()
        return self.process.wait(30)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def finished(self) -> list[str]:
        """The lines of trials that ended."""
        return [line for line in self.lines if re.match(r"\[\d+/\d+\]", line) and "runs again" not in line]

    def end(self) -> None:
        """Leave nothing behind, whatever a test found."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.stdout.close()
        self.process.wait(30)


def processes_under(pid: int) -> dict[int, str]:
    """Process id -> command, of all descendants."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in table.splitlines()]
    known = {int(row[0]): (int(row[1]), row[3] if len(row) > 3 else "") for row in rows if not row[2].startswith("Z")}
    found: dict[int, str] = {}
    front = {pid}
    while front:
        front = {child for child, (parent, _) in known.items() if parent in front}
        found |= {child: known[child][1] for child in front}
    return found


def still_alive(processes: dict[int, str], seconds: float) -> dict[int, str]:
    """Which of these are left after at most so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        left = {pid: command for pid, command in processes.items() if _alive(pid)}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")
