"""`fit(spec)`: train every replica of a trial and score it. Knows no Ray.

The learning rate is chosen later, on validation; here every replica is scored on validation and on test, at its best
checkpoint by validation and at its last. A replica that diverges is a result, not a crash. What is scored is proved:
after training, the model must give the same answers token by token from its measured state, in a fresh copy.
"""

import contextlib
import math
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoology.architectures.audit import verify_trained
from zoology.architectures.state import by_component, total
from zoology.data import SliceData, TrialData, batches, load_data, steps_per_epoch
from zoology.model import LanguageModel
from zoology.optim import adamw, learning_rate_at
from zoology.record import ReplicaResult, Score, Training, TrialResult, TrialSpec
from zoology.registry import load_entry_points, load_plugin
from zoology.tasks.base import IGNORE
from zoology.tasks.limits import tabulate

EVALUATION_TOKENS, CPU_EVALUATION_TOKENS = 256 * 256, 64 * 64
"""Tokens in a step of evaluation. More than these leave a CPU's caches, and take it a quarter longer."""
VERIFIED_SEQUENCES = 32
"""Sequences of each test slice on which a trained model must run from its state as it ran as a whole."""


class AuditError(RuntimeError):
    """A trained model does not run from its state as it was scored: its numbers would mean nothing."""


class Progress(NamedTuple):
    """Where a trial is: replica `replica` of `replicas`, at `step` of `steps`; its last validation accuracy."""

    replica: int
    replicas: int
    step: int
    steps: int
    accuracy: float | None


class Measured(NamedTuple):
    """Accuracy and mean loss over the labelled positions of a slice; None of a model that diverged."""

    accuracy: float | None
    loss: float | None


def fit(
    spec: TrialSpec, device: str | torch.device = "cpu", progress: Callable[[Progress], None] | None = None
) -> TrialResult:
    """Train and score all replicas of a trial.

    Args:
        spec: what to train, and on what.
        device: where.
        progress: called some times a second with where the trial is.

    Raises:
        AuditError: a trained model gives other answers from its state than as a whole.
        InputError: the spec is impossible.
    """
    device = torch.device(device)
    data = TrialData(*(tuple(part.to(device) for part in split) for split in load_data(spec)))
    with seeded(0, device):
        parameters = sum(p.numel() for p in build_model(spec, data.vocab_size).parameters())
    replicas = []
    for index, (learning_rate, seed) in enumerate(spec.replicas):

        def report(step: int, steps: int, accuracy: float | None, index: int = index) -> None:
            if progress:
                progress(Progress(index, len(spec.replicas), step, steps, accuracy))

        with denormals_flushed():
            replicas.append(_fit_replica(spec, data, learning_rate, seed, device, report))
    return TrialResult(spec=spec, replicas=tuple(replicas), parameters=parameters)


def run_trial(
    spec: TrialSpec, device: str | torch.device = "cpu", progress: Callable[[Progress], None] | None = None
) -> TrialResult:
    """`fit` for a worker: registers the spec's plugins first; what is raised becomes the result, traceback and all."""
    try:
        load_entry_points()
        for plugin in spec.plugins:
            load_plugin(plugin.path, plugin.source)
        return fit(spec, device, progress)
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


def _fit_replica(
    spec: TrialSpec,
    data: TrialData,
    learning_rate: float,
    seed: int,
    device: torch.device,
    report: Callable[[int, int, float | None], None],
) -> ReplicaResult:
    begin = time.perf_counter()
    with seeded(seed, device):
        model = build_model(spec, data.vocab_size).to(device)
        trained = _train(model, spec.training, data, learning_rate, report)
    nothing = [Measured(None, None)] * len(data.test)
    last = best = {"valid": nothing, "test": nothing}
    if not trained.diverged:
        last = best = {"valid": trained.last_valid, "test": evaluate_all(model, data.test)}
    if trained.best is not None:
        if trained.best.step != trained.steps:
            model.load_state_dict(trained.best.weights)
            best = {"valid": trained.best.valid, "test": evaluate_all(model, data.test)}
        _verify(spec, model, data, device)
    scores = []
    for split, parts in (("valid", data.valid), ("test", data.test)):
        for part, test, at_best, at_last in zip(parts, data.test, best[split], last[split], strict=True):
            limit = part.task.state_bits(1.0)
            state = model.measure_state(part.tokens[:1, : part.task.context_length])
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
                    limits=tabulate(part.task.state_bits) if split == "test" else (),
                )
            )
    return ReplicaResult(
        learning_rate=learning_rate,
        seed=seed,
        status="diverged" if trained.diverged else "ok",
        scores=tuple(scores),
        steps=trained.steps,
        best_step=trained.best.step if trained.best else 0,
        seconds=round(time.perf_counter() - begin, 3),
    )


class _Best(NamedTuple):
    """The best checkpoint so far, with what it scored on validation."""

    score: tuple[float, float]
    step: int
    weights: dict[str, Tensor]
    valid: list[Measured]


class _Trained(NamedTuple):
    """The model is left as it was at the last step. `best` is None only where it diverged before any validation."""

    steps: int
    best: _Best | None
    last_valid: list[Measured]
    diverged: bool = False


def _train(
    model: LanguageModel,
    training: Training,
    data: TrialData,
    learning_rate: float,
    report: Callable[[int, int, float | None], None],
) -> _Trained:
    """The training loop. Metrics stay on the device; the host looks at them only when it validates."""
    steps = training.epochs * steps_per_epoch(data.train, training.batch_size)
    optimizer = adamw(model, learning_rate, training.weight_decay)
    order = torch.Generator().manual_seed(training.data_seed)
    best: _Best | None = None
    measured: list[Measured] = []
    accuracy: float | None = None
    step = 0
    model.train()
    for _ in range(training.epochs):
        for batch in batches(data.train, training.batch_size, order):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate_at(step, steps, training.warmup)
            optimizer.zero_grad()
            loss = labelled_loss(model, batch)
            loss.backward()
            optimizer.step()
            step += 1
            if step % training.validate_every == 0 or step == steps:
                measured = evaluate_all(model, data.valid)
                if not (all(math.isfinite(m.loss) for m in measured) and math.isfinite(loss.item())):
                    return _Trained(step, best, measured, diverged=True)
                accuracy = sum(m.accuracy for m in measured) / len(measured)
                score = (accuracy, -sum(m.loss for m in measured))
                if best is None or score > best.score:
                    weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
                    best = _Best(score, step, weights, measured)
                if training.threshold is not None and accuracy >= training.threshold:
                    report(step, steps, accuracy)
                    return _Trained(step, best, measured)
                model.train()
            if step % 20 == 0:
                report(step, steps, accuracy)
    return _Trained(step, best, measured)


def labelled_loss(model: nn.Module, batch: SliceData) -> Tensor:
    """Mean cross-entropy over the labelled positions of a batch; 0 where it has none."""
    logits, targets = model(batch.tokens, batch.positions).flatten(0, 1), batch.targets.flatten()
    summed = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return summed / (targets != IGNORE).sum().clamp_min(1)


def evaluate_all(model: nn.Module, parts: tuple[SliceData, ...]) -> list[Measured]:
    """Each slice scored on its own, with one transfer to the host for all."""
    sums = torch.stack([_evaluate(model, part) for part in parts]).tolist()
    return [Measured(right / count, loss / count) for right, loss, count in sums]


@torch.no_grad()
def _evaluate(model: nn.Module, part: SliceData) -> Tensor:
    """(right answers, summed loss, labels) of a slice, as float64 on its device."""
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=part.tokens.device)
    tokens = CPU_EVALUATION_TOKENS if sums.device.type == "cpu" else EVALUATION_TOKENS
    size = max(1, tokens // part.tokens.shape[1])
    for start in range(0, len(part.tokens), size):
        rows = slice(start, start + size)
        targets = part.targets[rows].flatten()
        logits = model(part.tokens[rows], part.positions[rows]).flatten(0, 1)
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        right = (logits.argmax(-1) == targets).sum()
        sums += torch.stack([right.double(), loss.double(), (targets != IGNORE).sum().double()])
    return sums


def _verify(spec: TrialSpec, model: LanguageModel, data: TrialData, device: torch.device) -> None:
    def fresh() -> LanguageModel:
        with seeded(0, device):
            return build_model(spec, data.vocab_size).to(device)

    for test, valid in zip(data.test, data.valid, strict=True):
        # Validation helps out where the test set is a single sequence: rows are tried against one another.
        tokens = torch.cat([test.tokens, valid.tokens])[:VERIFIED_SEQUENCES]
        scored = torch.cat([test.labelled(), valid.labelled()])[:VERIFIED_SEQUENCES]
        finding = verify_trained(fresh, model, tokens, test.task.context_length, scored=scored)
        if finding:
            raise AuditError(f"{spec.architecture} on {test.name}, after training: {finding}")
