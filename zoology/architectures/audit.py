"""The audit: is a mixer the function of its past, through its state, that it says it is?

Every registered mixer passes it before anything is trained. It refuses a mixer that sees a later token, whose step or
prefill is another function than its forward, that keeps more than its state shows (in an attribute, a buffer, a global,
a closure, the shape or keys of the state, in anything that outlives a call), that mixes the rows of a batch, that
writes into what it is given, or whose gradients or outputs are not finite. Each finding is one line. Outputs of a mixer
that reads its context whole (`ContextMixer`) may depend, inside the context, on all of it, and on nothing after it; it
is cut into pieces from the context's end on.

Inputs are Gaussian, repeated (as tokens repeat in recall tasks) and large; weights are the initial ones, and the same
with noise on every parameter, so that a zero-initialised gate hides nothing; float64 is used where a mixer can, so that
round-off hides nothing, and float32 as well, as that is what is scored.

Out of reach, as no test from outside can tell: a mixer that acts only on data, lengths, sizes or weights that the audit
does not happen to try (for this, `verify_trained` compares the trained model with itself on the very sequences that
are scored); that writes to the disk, to shared memory or to another process; that reads the memory of this process
(its stack frames or all its objects) from a step; that changes this code, torch or the interpreter while it runs; that
recognises the audit and behaves; that never returns.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoology.architectures import audit_checks as checks
from zoology.architectures.audit_bench import Bench, Finding, benches, blame, make_inputs
from zoology.architectures.audit_process import FreshProcess, PluginFile, importable
from zoology.architectures.audit_trained import step_together, verify_trained
from zoology.architectures.base import ContextMixer, mixers
from zoology.registry import InputError

__all__ = ["FreshProcess", "Verdict", "audit", "audit_many", "step_together", "verify_trained"]

LENGTHS = (1, 2, 7, 33, 64)
CONTEXTS = (1, 5, 20)
"""Tokens of a context that is read whole: each check of such a mixer is made with each of them."""
GROWTH = (1, 2, 4, 8, 16, 32, 64, 128, 257, 385)


@dataclass(frozen=True)
class Verdict:
    """What the audit found.

    Attributes:
        mixer, d_model, settings: what was audited.
        findings: what is wrong, a line each. None: it passed.
        notes: what was left out, or is worth knowing, of a mixer that passed.
        growth: "constant", "grows with the context", or "grows, then stays at N tokens".
        state_bytes: (tokens read, bytes by component and dtype) of one sequence, in float32, at some lengths.
        parameters: how many.
        seconds: that it took here. What the fresh process did meanwhile is not in it.
    """

    mixer: str
    d_model: int
    settings: dict[str, Any]
    findings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    growth: str = "unknown"
    state_bytes: checks.Table = ()
    parameters: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def audit(
    name: str,
    d_model: int = 16,
    settings: dict[str, Any] | None = None,
    lengths: Sequence[int] = LENGTHS,
    batch_size: int = 3,
    seed: int = 0,
    context: FreshProcess | None = None,
    fresh_process: bool = True,
    plugins: Sequence[PluginFile] = (),
) -> Verdict:
    """Audit one mixer. What a bad mixer does, raising included, becomes a finding.

    Args:
        name: of a registered mixer.
        d_model, settings: what it is built with. Defaults where a setting is left out.
        lengths: of the sequences, in tokens.
        batch_size: at least 3, as the rows are of three kinds.
        seed: of everything random. The global generator is left as it was.
        context: a fresh process that serves several audits. One is started where it is None.
        fresh_process: whether to continue in another process at all. A class that one cannot import (written in a
            notebook or inside a function) is not continued there, which a note says.
        plugins: the files that register it. Found by themselves where they are on this disk.

    Raises:
        InputError: there is no such mixer, or it does not take these settings.
    """
    _check_arguments(lengths, batch_size)
    run = _Run(name, d_model, dict(settings or {}), tuple(lengths), batch_size, seed)
    own = FreshProcess() if fresh_process and context is None else None
    try:
        run.in_process()
        if fresh_process:
            run.submit(context or own, plugins)
        return run.verdict()
    finally:
        if own is not None:
            own.close()


def audit_many(
    jobs: Iterable[tuple[str, int, dict[str, Any]]], plugins: Sequence[PluginFile] = (), seed: int = 0
) -> list[Verdict]:
    """Audit several mixers, (name, d_model, settings) each, with one fresh process. Equal jobs are audited once.

    Raises:
        InputError: as `audit`.
    """
    runs = [(repr((name, d_model, sorted(given.items()))), name, d_model, given) for name, d_model, given in jobs]
    todo = {key: _Run(name, d_model, dict(given), LENGTHS, 3, seed) for key, name, d_model, given in runs}
    if not todo:
        return []
    with FreshProcess() as context:
        for run in todo.values():
            run.in_process()
            run.submit(context, plugins)
        done = {key: run.verdict() for key, run in todo.items()}  # in the order of submission
    return [done[key] for key, *_ in runs]


def _check_arguments(lengths: Sequence[int], batch_size: int) -> None:
    if not lengths or min(lengths) < 1:
        raise InputError(f"lengths {tuple(lengths)}: the audit needs at least one, each at least 1")
    if batch_size < 3:
        raise InputError(f"batch_size {batch_size}: the audit needs at least 3, a row for each kind of inputs")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The global generator as it was, afterwards; and one thread meanwhile: more only get in each other's way here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def _grows(part: str, table: checks.Table) -> bool:
    """Whether a component of the state is larger at the last length than at the one before."""
    before, after = (sum(parts.get(part, {}).values()) for _, parts in table[-2:])
    return after > before


class _Run:
    """One audit under way."""

    def __init__(
        self, name: str, d_model: int, settings: dict[str, Any], lengths: tuple[int, ...], batch: int, seed: int
    ):
        self.name, self.d_model, self.settings, self.lengths = name, d_model, settings, lengths
        self.batch, self.seed = batch, seed
        self.seconds = 0.0
        self.findings: list[str] = []
        self.notes: list[str] = []
        self.growth: str = "unknown"
        self.table: checks.Table = ()
        self.parameters = 0
        self.benches: list[Bench] = []
        self.answer: tuple[FreshProcess, Path, list[tuple[Bench, Tensor, str]]] | None = None
        self.file = str(getattr(sys.modules.get(mixers.get(name).__module__), "__file__", ""))

    def attempt(self, check: Callable[..., Any], *args: Any) -> Any:
        """The result of a check, or None after noting what it found or what the mixer raised."""
        try:
            with torch.no_grad():
                return check(*args)
        except Finding as finding:
            self.note_finding(str(finding))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: a mixer must not end the program that audits it
            if check is benches and isinstance(error, InputError):
                raise  # it does not take these settings
            self.note_finding(f"it raises {blame(error, self.file)}")
        return None

    def note_finding(self, text: str) -> None:
        text = " ".join(text.split())
        if text not in self.findings:
            self.findings.append(text)

    def in_process(self) -> None:
        """All checks that need no other process. The later ones are left out where the earlier ones fail."""
        started = time.perf_counter()
        longest = max(*self.lengths, 8)
        with _quietly():
            made = self.attempt(benches, self.name, self.d_model, self.settings, self.seed, self.batch, longest)
            if made is None:
                return
            self.benches, self.notes = made
            *_, plain, last = self.benches
            self.parameters = sum(p.numel() for p in plain.module.parameters())
            for bench in (plain, last):
                self.attempt(checks.check_interface, bench, self.lengths)
            for tokens in self.contexts(longest):
                self.context = tokens
                if not self.findings:
                    self.checks(plain, longest)
            growth = self.attempt(checks.measure_growth, plain, GROWTH)
            if growth is not None:
                self.growth, self.table = growth
                for part in self.table[-1][1]:
                    if part == "recurrent" and self.growth == checks.GROWS and _grows(part, self.table):
                        self.notes.append(
                            "its recurrent state grows with the context: call what grows keys or values, or conv... "
                            "where it is the past inputs of a convolution"
                        )
        self.seconds = time.perf_counter() - started

    def contexts(self, longest: int) -> tuple[int, ...]:
        """The contexts to try: of no token for a mixer that does not read it whole."""
        reads = issubclass(mixers.get(self.name), ContextMixer)
        return tuple(n for n in CONTEXTS if n < longest) if reads else (0,)

    @property
    def context(self) -> int:
        """Tokens that are read whole at present, on every bench."""
        return self.benches[0].context

    @context.setter
    def context(self, tokens: int) -> None:
        for bench in self.benches:
            bench.context = tokens

    def checks(self, plain: Bench, longest: int) -> None:
        """All that is asked after the interface, with one length of the context."""
        self.attempt(checks.check_structure, plain)
        if not self.findings:
            for bench in {id(b): b for b in (self.benches[-1], self.benches[len(self.benches) // 2 - 1])}.values():
                self.attempt(checks.check_repeats, bench)
                if not self.findings:
                    self.attempt(checks.check_rows, bench, [n for n in self.after if n <= 33] or [longest])
        if not self.findings:
            self.behaviour()

    @property
    def after(self) -> tuple[int, ...]:
        """The lengths that have something after the context."""
        return tuple(sorted({self.context + 1, *(n for n in self.lengths if n > self.context)}))

    def behaviour(self) -> None:
        """Causality, the agreement of the three ways to run, and gradients."""
        longest, lengths = max(*self.lengths, 8), self.after
        half = len(self.benches) // 2  # (initial, noisy) in the first dtype, and again in float32 where that is another
        main = self.benches[half - 1] if half > 1 else self.benches[-1]
        plain = self.benches[-2]
        few = sorted({*range(max(1, self.context), min(longest, 34)), *lengths, *range(36, longest, 7)})
        for bench in self.benches:
            full = bench is main
            for length in lengths:
                if length > 1 and (full or length in (7, longest)):
                    self.attempt(checks.check_causality, bench, length, full and length <= 33)
            self.attempt(checks.check_lengths, bench, few if full else lengths)
            for length in lengths:
                if full or length in (1, 2, 33):
                    ways = checks.splits(length - self.context)
                    self.attempt(checks.check_relay, bench, bench.x[:, :length], ways)
            if self.findings:
                return
        self.attempt(checks.check_path, main, [n for n in lengths if n <= 33])
        self.attempt(self.long, main, max(4 * longest + 1, 65))
        unreached: set[str] | None = None
        some = [n for n in self.lengths if n in (1, 33)] or [longest]
        for bench in (plain, self.benches[-1]):
            missing = self.attempt(checks.check_gradients, bench, some)
            if missing is not None:
                unreached = set(missing) if unreached is None else unreached & set(missing)
        if unreached:
            self.notes.append(f"no gradient reaches {', '.join(sorted(unreached))}")

    def long(self, bench: Bench, length: int) -> None:
        """A few cuts and one relay on a longer sequence, for a mixer that waits."""
        x = make_inputs(3, length, self.d_model, bench.generator).to(bench.dtype)[:2]
        try:
            bench.forward(x)
        except Finding:  # under noisy weights a recurrence may grow without bound; that is no fault
            self.notes.append(f"not run at {length} tokens with noisy weights: its outputs overflow there")
            return
        kept = bench.x, bench.context
        bench.x, bench.context = x, 4 * bench.context
        rest = length - bench.context
        try:
            checks.check_causality(bench, length, False, range(31, length, 37))
            checks.check_lengths(bench, (length // 2,))
            checks.check_relay(bench, x[:1], [[rest // 2, rest - rest // 2 - 17] + [0] * 17])
        finally:
            bench.x, bench.context = kept

    def submit(self, context: FreshProcess | None, plugins: Sequence[PluginFile]) -> None:
        """Read half of the sequences here, and have the process continue them."""
        if self.findings or context is None:
            return
        where = importable(self.name, plugins)
        if where is None:
            self.notes.append("not continued in a fresh process: its class was not defined in a file to import")
            return
        cases: list[dict[str, Any]] = []
        expected: list[tuple[Bench, Tensor, str]] = []
        with _quietly():
            for tokens in self.contexts(max(*self.lengths, 8)):
                self.context = tokens
                for bench in self.benches:
                    self.attempt(checks.make_cases, bench, cases, expected)
        if not self.findings:
            job = {
                "name": self.name,
                "d_model": self.d_model,
                "settings": self.settings,
                "seed": self.seed,
                "plugins": where[0],
                "modules": where[1],
                "cases": cases,
            }
            self.answer = context, context.submit(job), expected

    def verdict(self) -> Verdict:
        """Wait for the process, and sum up."""
        if self.answer is not None:
            context, path, expected = self.answer
            answer = context.answer(path)
            if "error" in answer:
                self.note_finding(f"it cannot be continued in a fresh process: {answer['error']}")
            else:
                for (bench, want, what), got in zip(expected, answer["outputs"], strict=True):
                    if got.shape != want.shape:
                        self.note_finding(f"{what} in a fresh process, its output is of shape {tuple(got.shape)}")
                    elif worst := bench.differ(got, want):
                        self.note_finding(
                            f"{what} in a fresh process, its output is off by {worst[2]:.2g}, {worst[1]} tokens on: it "
                            "keeps something outside the state"
                        )
                        break
        return Verdict(
            mixer=self.name,
            d_model=self.d_model,
            settings=self.settings,
            findings=tuple(self.findings),
            notes=() if self.findings else tuple(self.notes),
            growth=self.growth,
            state_bytes=self.table,
            parameters=self.parameters,
            seconds=self.seconds,
        )
