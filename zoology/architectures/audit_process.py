"""A fresh process that continues a sequence from nothing but weights and state.

What a mixer keeps in a module's globals, a class, a closure or a cache outlives a call, and inside one process no fresh
module can show it. So the audit reads the context here, sends the bytes of the state to another interpreter, and
compares what comes back. A state travels as its tensors' bytes and a description of its containers: nothing that
hangs on either goes along.
"""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import zoology
from zoology.architectures.base import Mixer, build_mixer, mixers
from zoology.registry import load_entry_points, load_plugin, read_plugin

Weights = dict[str, Tensor]
Types = dict[tuple[str, str], type]

_SERVE = "from zoology.architectures.audit_process import serve; serve()"


def to_bytes(t: Tensor) -> Tensor:
    """A tensor's elements as fresh bytes, (n,) uint8. Lazy conjugation and what lies behind a view are left out."""
    return t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).clone()


def pack(state: Any, parts: list[Tensor], types: Types | None = None) -> list[Any]:
    """Append the bytes of each tensor of a state to `parts`; return its structure as plain lists.

    Args:
        state: containers around tensors, as `state.leaves` accepts them.
        parts: is extended, in the structure's order.
        types: is filled with the NamedTuple classes that were met.
    """
    if isinstance(state, Tensor):
        parts.append(to_bytes(state))
        return ["tensor", str(state.dtype).removeprefix("torch."), list(state.shape)]
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        key = (type(state).__module__, type(state).__qualname__)
        if types is not None:
            types[key] = type(state)
        return ["named", *key, [pack(value, parts, types) for value in state]]
    if isinstance(state, tuple | list):
        return [type(state).__name__, [pack(value, parts, types) for value in state]]
    return ["dict", list(state), [pack(value, parts, types) for value in state.values()]]


def unpack(structure: list[Any], parts: Iterator[Tensor], types: Types) -> Any:
    """A state made anew from what `pack` returned.

    Args:
        structure: what `pack` returned.
        parts: the bytes, in order. Copied, so that two states made from them share nothing.
        types: NamedTuple classes by (module, qualified name). One that is missing is imported.
    """
    kind, *rest = structure
    if kind == "tensor":
        return next(parts).view(getattr(torch, rest[0])).reshape(rest[1]).clone()
    if kind == "named":
        cls: Any = types.get((rest[0], rest[1]))
        if cls is None:
            cls = importlib.import_module(rest[0])
            for name in rest[1].split("."):
                cls = getattr(cls, name)
        return cls(*[unpack(child, parts, types) for child in rest[2]])
    children = [unpack(child, parts, types) for child in rest[-1]]
    if kind == "dict":
        return dict(zip(rest[0], children, strict=True))
    return tuple(children) if kind == "tuple" else children


def build(
    name: str, d_model: int, settings: dict[str, Any], seed: int, dtype: torch.dtype, weights: Weights | None = None
) -> Mixer:
    """A mixer in eval mode on the CPU, the same for the same arguments. Moves the global generator: fork it first."""
    torch.manual_seed(seed)
    mixer = build_mixer(name, d_model, settings).to(dtype).eval()
    if weights is not None:
        mixer.load_state_dict(weights)
    return mixer


def run_pieces(mixer: Any, x: Tensor, state: Any, pieces: Sequence[int], context: int = 0) -> Tensor:
    """x (batch, time, d_model) through `mixer` from `state`: each piece is a prefill's length, or 0 for one step.

    Where `context` is not 0, so many tokens are read whole at first, and the state is what that leaves.
    """
    outputs, t = [], context
    if context:
        y, state = mixer.read_context(x[:, :context].clone())
        outputs.append(y)
    for piece in pieces:
        if piece:
            y, state = mixer.prefill(x[:, t : t + piece].clone(), state)
        else:
            y, state = mixer.step(x[:, t].clone(), state)
            y = y[:, None]
        outputs.append(y)
        t += max(piece, 1)
    return torch.cat(outputs, dim=1)


class PluginFile(Protocol):
    """A plugin that a fresh process must load: `record.Plugin` is one."""

    @property
    def path(self) -> str: ...

    @property
    def source(self) -> str: ...


def importable(name: str, plugins: Sequence[PluginFile]) -> tuple[list[tuple[str, str]], list[str]] | None:
    """(plugin files, modules) that a fresh process must load to know a mixer, or None where that cannot be."""
    cls = mixers.get(name)
    module = sys.modules.get(cls.__module__)
    files = [(str(p.path), p.source) for p in plugins]
    if cls.__module__.startswith("zoology_plugin_"):
        file = str(getattr(module, "__file__", ""))
        if file not in [str(Path(path).expanduser().absolute()) for path, _ in files]:
            if not Path(file).is_file():
                return None
            files.append((file, read_plugin(file)))
        return files, []
    if module is None or cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        return None
    try:
        found = importlib.util.find_spec(cls.__module__)
    except (ImportError, ValueError):
        return None
    return (files, [cls.__module__]) if found is not None else None


class FreshProcess:
    """Another interpreter, started at once so that its imports overlap with work here. A context manager.

    Args:
        timeout: seconds that it may take for one answer, its own start included.
    """

    def __init__(self, timeout: float = 120.0):
        self.timeout = timeout
        self._folder = Path(tempfile.mkdtemp(prefix="zoology-audit-"))
        self._count = 0
        self._pending: list[Path] = []
        self._process: subprocess.Popen[str] | None = None
        root = str(Path(zoology.__file__).resolve().parents[1])
        paths = [root, *(str(Path(p).absolute()) for p in sys.path if p)]
        # taken now: a mixer may write to the environment, which a process started later would inherit
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",  # the audit is a matter of the CPU; no context on a GPU for it
        }
        self._start()

    def __enter__(self) -> "FreshProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        with open(self._folder / "stderr", "w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=self._environment,
                cwd=self._folder,
                text=True,
            )

    def submit(self, job: dict[str, Any]) -> Path:
        """Send a job (plain containers and tensors). `answer` fetches what comes of it, in the order of submission."""
        self._count += 1
        path = self._folder / f"{self._count}.pt"
        torch.save(job, path)
        self._pending.append(path)
        self._send(path)
        return path

    def _send(self, path: Path) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{path}\n")
            self._process.stdin.flush()
        except OSError:  # it is dead, which `answer` finds
            pass

    def answer(self, path: Path) -> dict[str, Any]:
        """{"outputs": [Tensor]}, or {"error": one line} where the process failed, died or took too long.

        After a death the jobs still waiting go to a new process, so that one mixer's crash is not another's.
        """
        self._pending.remove(path)
        answer, end = path.with_suffix(".answer"), time.monotonic() + self.timeout
        while True:
            assert self._process is not None
            code = self._process.poll()  # before the look at the file: what was written before a death counts
            if answer.exists():
                result: dict[str, Any] = torch.load(answer, weights_only=True)
                return result
            if code is not None:
                lines = (self._folder / "stderr").read_text(errors="replace").strip().splitlines()
                error = f"it ended with exit code {code}" + (f": {lines[-1]}" if lines else "")
            elif time.monotonic() > end:
                error = f"it did not answer within {self.timeout:g} s"
                self._process.kill()
                self._process.wait()
            else:
                time.sleep(0.003)
                continue
            self._start()
            for waiting in self._pending:
                self._send(waiting)
            return {"error": error}

    def close(self) -> None:
        """End the process and remove its files."""
        if self._process is not None:
            assert self._process.stdin is not None
            try:
                self._process.stdin.close()
                self._process.wait(timeout=1)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)


def serve() -> None:
    """Answer jobs, one path for each line of the standard input, until it closes."""
    requests, sys.stdin = sys.stdin, open(os.devnull)  # noqa: SIM115 a mixer that reads input must not eat a request
    importlib.import_module("zoology.architectures")
    load_entry_points()
    for line in requests:
        path = Path(line.strip())
        try:
            result: dict[str, Any] = {"outputs": _continue(torch.load(path, weights_only=True))}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        part = path.with_suffix(".part")
        torch.save(result, part)
        part.replace(path.with_suffix(".answer"))  # whole or not at all


def _continue(job: dict[str, Any]) -> list[Tensor]:
    """The outputs for each case of a job: a state, the inputs that follow it, and how to cut them into pieces."""
    for plugin, source in job["plugins"]:
        load_plugin(plugin, source)
    for module in job["modules"]:
        importlib.import_module(module)
    outputs = []
    with torch.no_grad():
        for case in job["cases"]:
            x = case["x"]
            mixer = build(job["name"], job["d_model"], job["settings"], job["seed"], x.dtype, case["weights"])
            types: Types = {}
            pack(mixer.init_state(x.shape[0]), [], types)
            state = unpack(case["structure"], iter(case["parts"]), types)
            outputs.append(run_pieces(mixer, x, state, case["pieces"], case["context"]).clone())
    return outputs
