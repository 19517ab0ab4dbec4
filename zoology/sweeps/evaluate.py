"""Score the weights that a run kept on other slices of its task, longer contexts included."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zoology.architectures.state import by_component, total
from zoology.data import TrialData, context_of, pack, refuse_labels_in_contexts
from zoology.record import SWEEP, WEIGHTS, Scalar, TrialSpec
from zoology.registry import InputError, load_plugin
from zoology.sweeps.space import Request, data_plan, expand
from zoology.tasks.base import draw_splits
from zoology.train import build_model, denormals_flushed, full_precision, seeded
from zoology.training import checkpoint
from zoology.training.evaluate import evaluate_all
from zoology.training.stack import Stack


def request_of(run: Path) -> Request:
    """What a run was asked for.

    Raises:
        InputError: it is no run of a sweep, or one of another version.
    """
    try:
        return Request(**json.loads((run / SWEEP).read_text(encoding="utf-8"))["request"])
    except FileNotFoundError:
        raise InputError(f"{run} is no run: it holds no {SWEEP}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run / SWEEP} cannot be read: {' '.join(str(error).split())[:200]}") from error


def evaluate_run(
    run: Path,
    params: dict[str, tuple[Scalar, ...]],
    slices: str | None = None,
    n: int | None = None,
    device: str = "cpu",
    done: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Every replica of every trial whose weights a run kept, on test slices of its task: one row for each slice.

    Args:
        run: the folder.
        params: values that replace those that the run was given for its slices.
        slices: named slices of the task. Default: those of the run's scale.
        n: test sequences of each slice. Default: the scale's.
        device: where.
        done: told (trials done, trials) after each.

    Raises:
        InputError: it is no run, it kept no weights, they are torn, or the slices are impossible for these models.
    """
    request = request_of(run)
    for plugin in request.plugins:
        load_plugin(plugin.path, plugin.source)
    params = request.task_params | params
    count = n or request.test_examples
    plan = data_plan(request.task, params, request.scale, "test", count, slices or request.slices)["test"]
    batches = draw_splits({"test": [(task, count) for _, task, count in plan]}, 0, last="test")["test"]
    parts = tuple(
        pack(name, task, batch).to(torch.device(device)) for (name, task, _), batch in zip(plan, batches, strict=True)
    )
    specs = [spec for spec in expand(request) if _file(run, spec).exists()]
    if not specs:
        raise InputError(f"{run} holds no weights of its trials: run them again, or with --resume")
    rows = []
    with denormals_flushed(), full_precision():
        for count, spec in enumerate(specs, 1):
            rows += _evaluate(run, spec, TrialData((), (), parts), torch.device(device))
            if done:
                done(count, len(specs))
    return rows


def _evaluate(run: Path, spec: TrialSpec, data: TrialData, device: torch.device) -> list[dict[str, Any]]:
    try:
        tensors, words = checkpoint.read(_file(run, spec))
    except checkpoint.Torn as error:
        raise InputError(f"{error}: remove it, and run its trial again") from error
    vocabulary = len(tensors["0.embedding.weight"])
    if vocabulary < data.vocab_size:
        raise InputError(
            f"{spec.architecture} was trained on a vocabulary of {vocabulary}, and these slices have {data.vocab_size}"
        )
    models = []
    for index in range(len(words["replicas"])):
        with seeded(0, device):
            model = build_model(spec, vocabulary)
        model.load_state_dict(
            {name.removeprefix(f"{index}."): t for name, t in tensors.items() if name.startswith(f"{index}.")}
        )
        models.append(model.to(device).eval())
    if models[0].reads_context:
        refuse_labels_in_contexts(data)
    states = [models[0].measure_state(part.tokens[:1, : context_of(models[0], part.task)]) for part in data.test]
    rows = []
    for model, replica in zip(models, words["replicas"], strict=True):
        stack = Stack([model])
        (measured,) = evaluate_all(stack, stack.flat, data.test)
        for part, found, state in zip(data.test, measured, states, strict=True):
            elements, size = total(state)
            rows.append(
                {
                    "trial": spec.id,
                    "architecture": spec.architecture,
                    "dials": spec.dials,
                    "d_model": spec.d_model,
                    "task": spec.task,
                    **replica,
                    "split": "test",
                    "slice": part.name,
                    "params": part.task.model_dump(mode="json"),
                    "accuracy": found.accuracy,
                    "loss": found.loss,
                    "examples": len(part.tokens),
                    "test_hash": part.hash,
                    "state_elements": elements,
                    "state_bytes": size,
                    "state_parts": by_component(state),
                }
            )
    return rows


def _file(run: Path, spec: TrialSpec) -> Path:
    return run / WEIGHTS / f"{spec.id}.safetensors"
