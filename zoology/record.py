"""The words that the rooms speak to each other: what a trial is asked, and what it answers.

Frozen, strict about unknown keys, and the same through JSON. A trial's id is the hash of its spec, so what is done is
never run again. Imports nothing of ours, and no torch.
"""

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

FORMAT = 1
"""Version of the rows in `results.jsonl`. A reader refuses rows of a newer one."""

RESULTS, SWEEP, ENVIRONMENT, AUDIT = "results.jsonl", "sweep.json", "environment.json", "audit.json"
"""The files of a run folder: its rows, what was asked, what it ran on, and what the audit found of its mixers."""

WEIGHTS, CHECKPOINTS = "weights", "checkpoints"
"""Its folders: the best weights of every replica, a file for each trial, and what a killed trial goes on from."""

Scalar = bool | int | float | str | None
Status = Literal["ok", "diverged", "failed"]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Plugin(Record):
    """A user's file, carried with the spec so that a worker on another machine knows what it registers."""

    path: str
    source: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()


class LayerSpec(Record):
    """One layer: a mixer's name and all of its settings, defaults included."""

    mixer: str
    settings: dict[str, Any] = {}


class Slice(Record):
    """One setting of the task. `examples` is how many sequences are drawn of it."""

    name: str
    params: dict[str, Any]
    examples: int = Field(ge=1)


class Training(Record):
    """How every replica of a trial is trained. One replica for each learning rate and seed."""

    epochs: int = Field(1, ge=1, description="passes over the training set")
    batch_size: int = Field(64, ge=1, description="sequences in a step")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-3, 3e-3, 1e-2), min_length=1, description="peak learning rates"
    )
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="model seeds: initialisation and dropout")
    data_seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of the training and validation data")
    weight_decay: float = Field(0.1, ge=0, description="on matrices; norms, biases and hinted parameters go free")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    embedding_dropout: float = Field(0.0, ge=0, lt=1, description="on the embedding, in training")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="of matrix products; weights, norms and sums stay float32. Auto: bf16 on a GPU that has it"
    )
    init: Literal["fan-in", "papers"] = Field("fan-in", description="variance 1/fan_in, or as in the papers N(0, 0.02)")
    validate_every: int = Field(100, ge=1, description="steps between validations")
    threshold: float | None = Field(
        0.999, gt=0, le=1, description="validation accuracy at which a replica stops early; none: never"
    )

    @field_validator("learning_rates", "seeds")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("must not repeat a value, or a replica would count twice")
        return values


class TrialSpec(Record):
    """One architecture point and everything that its numbers depend on."""

    architecture: str
    dials: dict[str, Scalar]
    d_model: int = Field(ge=1)
    layers: tuple[LayerSpec, ...]
    task: str
    train: tuple[Slice, ...] = Field(min_length=1)
    valid: tuple[Slice, ...] = Field(min_length=1)
    test: tuple[Slice, ...] = Field(min_length=1)
    training: Training
    plugins: tuple[Plugin, ...] = ()

    @field_validator("valid", "test")
    @classmethod
    def _told_apart(cls, slices: tuple[Slice, ...]) -> tuple[Slice, ...]:
        names = [part.name for part in slices]
        if len(set(names)) < len(names):
            raise ValueError(f"slices {', '.join(names)}: two have one name, so their rows could not be told apart")
        return slices

    @model_validator(mode="after")
    def _validates_what_it_tests(self) -> "TrialSpec":
        valid, test = ([(part.name, part.params) for part in split] for split in (self.valid, self.test))
        if valid != test:
            raise ValueError("the slices of valid and test must be the same: one is chosen on, the other reported")
        return self

    @cached_property
    def id(self) -> str:
        """12 hex digits over all that decides the numbers: a plugin counts by its text, not by where it lies."""
        content = self.model_dump(mode="json", exclude={"plugins"})
        content["plugins"] = sorted(plugin.sha256 for plugin in self.plugins)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def replicas(self) -> tuple[tuple[float, int], ...]:
        """(learning rate, seed) of every replica."""
        return tuple((lr, seed) for lr in self.training.learning_rates for seed in self.training.seeds)


class Score(Record):
    """One replica on one slice of one split: the best checkpoint by validation, and the last.

    `limit_bits` is the least state of any model that never errs there, where the task knows it; `limits` has that of
    models that are right less often, as rising (accuracy, bits), on test scores only. So is `by_position`, the accuracy
    over where the answers stand: (first token, last token, answers, accuracy).
    """

    split: Literal["valid", "test"]
    slice: str
    accuracy: float | None
    loss: float | None
    accuracy_last: float | None
    loss_last: float | None
    examples: int
    test_hash: str
    state_elements: int
    state_bytes: int
    state_parts: dict[str, dict[str, int]]
    limit_bits: float | None
    limits: tuple[tuple[float, float], ...] = ()
    by_position: tuple[tuple[int, int, int, float], ...] = ()


class ReplicaResult(Record):
    """What one (learning rate, seed) reached. `accuracy` is None where it diverged before its first validation.

    seconds: its share of the time of those that were trained together.
    precision: of its matrix products.
    curve: (steps, mean training loss since the point before, validation accuracy); None where it had diverged.
    """

    learning_rate: float
    seed: int
    status: Status
    scores: tuple[Score, ...]
    steps: int
    best_step: int
    seconds: float
    precision: Literal["bf16", "fp32"] = "fp32"
    curve: tuple[tuple[int, float | None, float | None], ...] = ()
    error: str | None = None


class TrialResult(Record):
    """All replicas of a trial, or the traceback of what went wrong. `notes` say what did not go as usual, `timings`
    where the seconds went."""

    spec: TrialSpec
    replicas: tuple[ReplicaResult, ...] = ()
    parameters: int | None = None
    notes: tuple[str, ...] = ()
    timings: dict[str, float] = {}
    status: Status = "ok"
    error: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One tidy row for each replica, split and slice, ready for JSON. A failed trial is one row with its error.

        `params` are the task's parameters in the slice, and `trained` has of each whole-numbered one the least and the
        greatest value in training, so that a reader sees which slices lie beyond it.
        """
        spec = self.spec
        params = {part.name: part.params for part in spec.test}
        common = {
            "format": FORMAT,
            "trial": spec.id,
            "architecture": spec.architecture,
            "dials": spec.dials,
            "d_model": spec.d_model,
            "task": spec.task,
            "data_seed": spec.training.data_seed,
            "parameters": self.parameters,
            "notes": list(self.notes),
            "params": None,
            "trained": _ranges([part.params for part in spec.train]),
        }
        if self.status == "failed":
            empty = dict.fromkeys((*Score.model_fields, *ReplicaResult.model_fields))
            del empty["scores"]
            return [common | empty | {"status": "failed", "error": self.error}]
        return [
            common
            | {"params": params[score.slice]}
            | score.model_dump(mode="json")
            | replica.model_dump(mode="json", exclude={"scores"})
            | ({"curve": None} if score.split == "test" else {})  # a curve is about validation
            for replica in self.replicas
            for score in replica.scores
        ]

    @classmethod
    def failed(cls, spec: TrialSpec, error: str) -> "TrialResult":
        """The result of a trial that raised."""
        return cls(spec=spec, status="failed", error=error)


def _ranges(slices: list[dict[str, Any]]) -> dict[str, list[int]]:
    """[least, greatest] of each parameter that is a whole number in all of the slices."""
    names = [key for key in slices[0] if all(type(params.get(key)) is int for params in slices)]
    return {key: [min(params[key] for params in slices), max(params[key] for params in slices)] for key in names}


def rows_expected(spec: TrialSpec) -> int:
    """How many rows a trial that did not fail has: a block with fewer was torn."""
    return len(spec.replicas) * (len(spec.valid) + len(spec.test))
