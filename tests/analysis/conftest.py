"""Rows made through the records themselves, so that these tests break when the rows change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from zoology.analysis.records import completed
from zoology.record import ReplicaResult, Score, Slice, Training, TrialResult, TrialSpec

Accuracies = dict[tuple[float, int], tuple[Any, Any]]


def make_trial(
    accuracies: Accuracies,
    *,
    architecture: str = "based",
    dials: dict[str, Any] | None = None,
    d_model: int = 64,
    task: str = "mqar",
    slices: tuple[str, ...] = ("T64-N4",),
    state: int | tuple[int, ...] = 4096,
    hashes: dict[str, str] | None = None,
    params: dict[str, dict[str, Any]] | None = None,
    train: tuple[dict[str, Any], ...] | None = None,
    limits: dict[str, tuple[tuple[float, float], ...]] | None = None,
) -> TrialResult:
    """A trial from (learning rate, seed) -> (valid, test); one accuracy each, or one per slice. None: diverged.

    Slices have the `params` and `limits` that are given under their names; `train` are those of the training
    slices, by default the same as of the test slices.
    """
    params = params or {}
    parts = tuple(Slice(name=name, params=params.get(name, {}), examples=1000) for name in slices)
    trained = tuple(Slice(name=f"train-{k}", params=p, examples=1000) for k, p in enumerate(train or ())) or parts
    rates = tuple(sorted({lr for lr, _ in accuracies}))
    seeds = tuple(sorted({seed for _, seed in accuracies}))
    spec = TrialSpec(
        architecture=architecture,
        dials=dials or {"feature_dim": 16},
        d_model=d_model,
        layers=(),
        task=task,
        train=trained,
        valid=parts,
        test=parts,
        training=Training(learning_rates=rates, seeds=seeds),
    )
    sizes = state if isinstance(state, tuple) else (state,) * len(slices)

    def scores(valid: Any, test: Any) -> tuple[Score, ...]:
        return tuple(
            Score(
                split=split,
                slice=name,
                accuracy=values[k] if isinstance(values, tuple) else values,
                loss=None,
                accuracy_last=None,
                loss_last=None,
                examples=1000,
                test_hash=(hashes or {}).get(name, f"hash-{name}") if split == "test" else f"{split}-{name}",
                state_elements=sizes[k] // 4,
                state_bytes=sizes[k],
                state_parts={"recurrent": {"float32": sizes[k]}},
                limit_bits=None,
                limits=(limits or {}).get(name, ()) if split == "test" else (),
            )
            for split, values in (("valid", valid), ("test", test))
            for k, name in enumerate(slices)
        )

    replicas = tuple(
        ReplicaResult(
            learning_rate=lr,
            seed=seed,
            status="diverged" if valid is None else "ok",
            scores=scores(valid, test),
            steps=100,
            best_step=100,
            seconds=1.0,
        )
        for (lr, seed), (valid, test) in accuracies.items()
    )
    return TrialResult(spec=spec, replicas=replicas)


def rows_of(*trials: TrialResult) -> pd.DataFrame:
    return completed(pd.DataFrame([row for trial in trials for row in trial.rows()]))


def write_run(folder: Path, *trials: TrialResult) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text("{}")
    text = "".join(json.dumps(row) + "\n" for trial in trials for row in trial.rows())
    (folder / "results.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="session")
def trial() -> Callable[..., TrialResult]:
    return make_trial


@pytest.fixture
def rows() -> Callable[..., pd.DataFrame]:
    return rows_of


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    return write_run


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    return lambda name, *trials: write_run(tmp_path / name, *trials)
