"""`fit(spec)`: train every replica of a trial and score it. Knows no Ray.

The learning rate is chosen later, on validation; here every replica is scored on validation and on test, at its best
checkpoint by validation and at its last. A replica that diverges is a result, not a crash. What is scored is proved:
after training, the model must give the same answers token by token from its measured state, in a fresh copy.
"""

import contextlib
import gc
import math
import shutil
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from zoology.architectures.state import Part, by_component, total
from zoology.data import TrialData, context_of, load_data, refuse_labels_in_contexts
from zoology.model import LanguageModel
from zoology.record import CHECKPOINTS, WEIGHTS, ReplicaResult, Score, TrialResult, TrialSpec
from zoology.registry import InputError, load_entry_points, load_plugin
from zoology.tasks.limits import tabulate
from zoology.training import checkpoint
from zoology.training.evaluate import Measured, evaluate_all
from zoology.training.loop import Loop, Trained
from zoology.training.memory import keep_freed_memory
from zoology.training.proof import prove
from zoology.training.stack import Stack


class Progress(NamedTuple):
    """Where a trial is: `together` replicas from `replica` on, of `replicas`, at `step` of `steps`; the best of their
    validation accuracies."""

    replica: int
    together: int
    replicas: int
    step: int
    steps: int
    accuracy: float | None


Reporter = Callable[[Progress], None]


def fit(
    spec: TrialSpec,
    device: str | torch.device = "cpu",
    progress: Reporter | None = None,
    *,
    stacked: bool | None = None,
    keep: Path | None = None,
) -> TrialResult:
    """Train and score all replicas of a trial.

    Args:
        spec: what to train, and on what.
        device: where.
        progress: called some times a second with where the trial is.
        stacked: whether all replicas are trained as one. Default: on a GPU, most of which one small model leaves idle.
            A CPU is as fast with one after another, as their tensors stay in its caches.
        keep: a folder for checkpoints, from which a trial that was killed goes on, and for the best weights.

    Raises:
        AuditError: a trained model gives other answers from its state than as a whole.
        InputError: the spec is impossible.
    """
    device = torch.device(device)
    begin = time.perf_counter()
    data = TrialData(*(tuple(part.to(device) for part in split) for split in load_data(spec)))
    trial = _Trial(spec, data, device, progress, keep)
    if trial.fresh().reads_context:
        refuse_labels_in_contexts(data)
    trial.seconds["starting"] = time.perf_counter() - begin
    together = device.type == "cuda" if stacked is None else stacked
    indexes = tuple(range(len(spec.replicas)))
    groups = deque([indexes] if together else [(index,) for index in indexes])
    with denormals_flushed(), full_precision():
        while groups:
            group = groups.popleft()
            smaller = trial.run(group)
            groups.extendleft(reversed(smaller))
    trial.put_away()
    return trial.result()


def run_trial(
    spec: TrialSpec,
    device: str | torch.device = "cpu",
    progress: Reporter | None = None,
    keep: Path | None = None,
) -> TrialResult:
    """`fit` for a worker: registers the spec's plugins first; what is raised becomes the result, traceback and all."""
    keep_freed_memory()
    try:
        load_entry_points()
        for plugin in spec.plugins:
            load_plugin(plugin.path, plugin.source)
        return fit(spec, device, progress, keep=keep)
    except (Exception, SystemExit):  # a mixer that exits must not take the worker with it
        return TrialResult.failed(spec, traceback.format_exc())


def best_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def build_model(spec: TrialSpec, vocab_size: int) -> LanguageModel:
    """The untrained model of a spec, drawn from torch's current random state."""
    layers = [(layer.mixer, layer.settings) for layer in spec.layers]
    return LanguageModel(
        vocab_size, spec.d_model, layers, dropout=spec.training.embedding_dropout, init=spec.training.init
    )


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Everything drawn inside comes from `seed`, and the random state outside is left as it was.

    Modules draw their initial weights and dropout masks from torch's global generator; there is no other way to hand
    them one.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU there is
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    """Denormal numbers count as 0 inside: a sharp softmax is full of them, and a CPU takes several times as long over
    each. What held outside holds again afterwards; as torch does not tell what that is, a denormal number does."""
    before = (torch.full((1,), 1e-39) * 1.0).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 products are float32 inside, whatever was asked for outside."""
    before, cudnn = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.enable_cudnn_sdp(False)  # compiled under vmap, it is given None where it wants a tensor (2.11)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products where it is not the weights' float32: bfloat16 on a GPU that has it.

    Raises:
        InputError: bf16 is asked for where there is none.
    """
    there = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not there:
        raise InputError(f"--precision bf16: {device.type} has no fast bfloat16 here; fp32 or auto")
    return torch.bfloat16 if there and precision != "fp32" else None


class _Trial:
    """A trial under way: trains one group of replicas after another, and collects what came of them."""

    def __init__(
        self, spec: TrialSpec, data: TrialData, device: torch.device, progress: Reporter | None, keep: Path | None
    ):
        self.spec, self.data, self.device, self.progress, self.keep = spec, data, device, progress, keep
        self.done: dict[int, ReplicaResult] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.notes: list[str] = []
        self.seconds: Counter[str] = Counter()
        self.compute = compute_dtype(spec.training.precision, device)
        if device.type == "cuda" and self.compute is None and spec.training.precision == "auto":
            self.notes.append("this GPU has no bfloat16: trained in float32")

    def run(self, group: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Train and score a group. Returns the smaller groups that it must be cut into, or none."""
        begin = time.perf_counter()
        saved = None
        if self.keep is not None:
            saved = self.keep / CHECKPOINTS / self.spec.id / f"{group[0]}-{group[-1]}.safetensors"
            if self._finished(saved, group):
                return []
        try:
            stack, trained = self._train(group, saved)
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            half = (len(group) + 1) // 2
            self.notes.append(f"out of memory with {len(group)} replicas together: went on with {half}")
            smaller = [group[:half], group[half:]]
        except Exception as error:
            if len(group) == 1:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.notes.append(f"its replicas cannot be trained as one, so they were trained one by one: {reason}")
            smaller = [(index,) for index in group]
        else:
            if self.device.type == "cuda":
                self._free()  # the graphs of the steps
            self._score(group, stack, trained, time.perf_counter() - begin, saved)
            return []
        self._free()  # here the exception, and with it every tensor of the attempt, is gone
        return smaller

    def _free(self) -> None:
        """Give back what memory nothing uses any more, with what only cycles of objects still hold."""
        gc.collect()
        if self.device.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()  # tens of MB for each stream, those of captures too
            torch.cuda.empty_cache()

    def result(self) -> TrialResult:
        """What came of all replicas, in their order."""
        parameters = sum(p.numel() for p in self.fresh().parameters())
        return TrialResult(
            spec=self.spec,
            replicas=tuple(self.done[index] for index in sorted(self.done)),
            parameters=parameters,
            notes=tuple(dict.fromkeys(self.notes)),
            timings={name: round(seconds, 3) for name, seconds in self.seconds.items()},
        )

    def put_away(self) -> None:
        """The best weights of all replicas in one file, and no checkpoints any more."""
        if self.keep is None:
            return
        order = sorted(self.done)
        replicas = [self.done[index].model_dump(include={"learning_rate", "seed", "status"}) for index in order]
        for index, words in zip(order, replicas, strict=True):
            valid = [score.accuracy for score in self.done[index].scores if score.split == "valid"]
            words["valid_accuracy"] = None if None in valid else sum(valid) / len(valid)  # type: ignore[arg-type]
        path = self.keep / WEIGHTS / f"{self.spec.id}.safetensors"
        try:
            checkpoint.write(path, _named(self.weights, order), {"trial": self.spec.id, "replicas": replicas})
        except OSError as error:  # a full disk costs the weights, not the results
            self.notes.append(f"its weights could not be kept: {error}")
            return
        shutil.rmtree(self.keep / CHECKPOINTS / self.spec.id, ignore_errors=True)
        with contextlib.suppress(OSError):  # other trials have theirs there
            (self.keep / CHECKPOINTS).rmdir()

    def _train(self, group: tuple[int, ...], saved: Path | None) -> tuple[Stack, Trained]:
        pairs = [self.spec.replicas[index] for index in group]
        begin = time.perf_counter()
        stack = Stack([self.fresh(seed) for _, seed in pairs], self.compute)
        self.seconds["starting"] += time.perf_counter() - begin
        with seeded(pairs[0][1], self.device):

            def report(step: int, steps: int, accuracy: float | None) -> None:
                if self.progress:
                    self.progress(Progress(group[0], len(group), len(self.spec.replicas), step, steps, accuracy))

            rates = [rate for rate, _ in pairs]
            return stack, Loop(stack, self.spec.training, self.data, rates, report, saved).train()

    def fresh(self, seed: int = 0) -> LanguageModel:
        """An untrained model, drawn from a seed."""
        with seeded(seed, self.device):
            return build_model(self.spec, self.data.vocab_size).to(self.device)

    def _score(
        self, group: tuple[int, ...], stack: Stack, trained: Trained, seconds: float, saved: Path | None
    ) -> None:
        """Test what was trained, prove it, and keep it."""
        begin = time.perf_counter()
        self.notes += trained.notes
        self.seconds.update(trained.seconds)
        stack = stack.whole(trained.best)
        tested = [evaluate_all(stack, flat, self.data.test, places=True) for flat in (trained.best, trained.last)]
        proven = [row for row in range(len(group)) if trained.replicas[row].best_valid is not None]
        self.notes += prove(self.spec.architecture, stack, trained.best, proven, self.data, self.fresh, self._free)
        model = stack.alone(trained.best, proven[0] if proven else 0)
        states = [model.measure_state(part.tokens[:1, : context_of(model, part.task)]) for part in self.data.test]
        for row, index in enumerate(group):
            at = trained.replicas[row]
            nothing = [Measured(None, None)] * len(self.data.test)
            fell = at.status == "diverged"
            measured = {
                "valid": (at.best_valid or nothing, nothing if fell else at.last_valid or nothing),
                "test": (tested[0][row] if at.best_valid else nothing, nothing if fell else tested[1][row]),
            }
            learning_rate, seed = self.spec.replicas[index]
            self.done[index] = ReplicaResult(
                learning_rate=learning_rate,
                seed=seed,
                status="diverged" if fell else "ok",
                scores=self._scores(measured, states),
                steps=at.steps,
                best_step=at.best_step,
                seconds=round((seconds + time.perf_counter() - begin) / len(group), 3),
                precision="fp32" if self.compute is None else "bf16",
                curve=tuple(at.curve),
            )
            self.weights[index] = stack.weights(trained.best, row)
        self.seconds["testing and proving"] += time.perf_counter() - begin
        if saved is not None:
            words = {"replicas": [self.done[index].model_dump(mode="json") for index in group], "notes": self.notes}
            with contextlib.suppress(OSError):  # then a trial that is killed begins this group anew
                checkpoint.write(saved, _named(self.weights, group), words)

    def _finished(self, saved: Path, group: tuple[int, ...]) -> bool:
        """Whether a group was trained and scored before a kill; then it is taken over as it is."""
        try:
            tensors, words = checkpoint.read(saved)
        except (FileNotFoundError, checkpoint.Torn):
            return False
        if "step" in words:  # in the middle of training
            return False
        for index, replica in zip(group, words["replicas"], strict=True):
            self.done[index] = ReplicaResult.model_validate(replica)
            self.weights[index] = {
                name.removeprefix(f"{index}."): t for name, t in tensors.items() if name.startswith(f"{index}.")
            }
        self.notes += words["notes"]
        return True

    def _scores(
        self, measured: dict[str, tuple[list[Measured], list[Measured]]], states: Sequence[list[Part]]
    ) -> tuple[Score, ...]:
        scores = []
        for split, parts in (("valid", self.data.valid), ("test", self.data.test)):
            for part, test, state, at_best, at_last in zip(
                parts, self.data.test, states, *measured[split], strict=True
            ):
                limit = part.task.state_bits(1.0)
                elements, size = total(state)
                scores.append(
                    Score(
                        split=split,  # type: ignore[arg-type]
                        slice=part.name,
                        accuracy=at_best.accuracy,
                        loss=at_best.loss,
                        accuracy_last=at_last.accuracy,
                        loss_last=at_last.loss,
                        examples=len(part.tokens),
                        test_hash=test.hash,
                        state_elements=elements,
                        state_bytes=size,
                        state_parts=by_component(state),
                        limit_bits=limit if limit is not None and math.isfinite(limit) else None,
                        by_position=at_best.places if split == "test" else (),
                        limits=tabulate(part.task.state_bits) if split == "test" else (),
                    )
                )
        return tuple(scores)


def _named(weights: dict[int, dict[str, torch.Tensor]], group: Sequence[int]) -> dict[str, torch.Tensor]:
    """The weights of several replicas in one dictionary: `3.blocks.0.norm.weight`."""
    return {f"{index}.{name}": tensor for index in group for name, tensor in weights[index].items()}
