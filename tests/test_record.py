"""Records: ids that mean the same numbers, rows that all look alike, values that cannot be meant refused."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from zoology.record import (
    LayerSpec,
    Plugin,
    ReplicaResult,
    Score,
    Slice,
    Training,
    TrialResult,
    TrialSpec,
    rows_expected,
)

KEYS = {
    *(
        "format",
        "trial",
        "architecture",
        "dials",
        "d_model",
        "task",
        "data_seed",
        "parameters",
        "params",
        "trained",
        "notes",
    ),
    *("learning_rate", "seed", "status", "steps", "best_step", "seconds", "precision", "curve", "error"),
    *("split", "slice", "accuracy", "loss", "accuracy_last", "loss_last", "examples", "test_hash"),
    *("state_elements", "state_bytes", "state_parts", "limit_bits", "limits", "by_position"),
}
"""Every key of a row in `results.jsonl`, whatever became of the trial."""

PART = {"name": "T64-N4", "params": {"seq_len": 64, "num_pairs": 4}, "examples": 10}
OTHER = PART | {"name": "T64-N8"}
SPEC: dict[str, Any] = {
    "architecture": "based",
    "dials": {"feature_dim": 16, "window": 0, "gamma": 0.5, "on": True, "map": "taylor", "none": None},
    "d_model": 32,
    "layers": [{"mixer": "short-conv", "settings": {"kernel_size": 3}}, {"mixer": "linear-attention", "settings": {}}],
    "task": "mqar",
    "train": [PART],
    "valid": [PART],
    "test": [PART | {"examples": 20}],
    "training": {"learning_rates": [1e-3, 1e-2], "seeds": [0, 1, 2]},
    "plugins": [{"path": "/a/mine.py", "source": "x = 1"}],
}


def spec(**changes: Any) -> TrialSpec:
    return TrialSpec(**(SPEC | changes))


def score(split: str = "test", **changes: Any) -> Score:
    return Score(
        **{
            "split": split,
            "slice": "T64-N4",
            "accuracy": 0.5,
            "loss": 1.25,
            "accuracy_last": None,
            "loss_last": None,
            "examples": 20,
            "test_hash": "ab",
            "state_elements": 3,
            "state_bytes": 12,
            "state_parts": {"kv": {"float32": 12}},
            "limit_bits": 7.5,
        }
        | changes
    )


def result() -> TrialResult:
    replicas = tuple(
        ReplicaResult(
            learning_rate=rate,
            seed=seed,
            status="ok",
            scores=(score("valid"), score("test")),
            steps=10,
            best_step=5,
            seconds=0.5,
        )
        for rate, seed in spec().replicas
    )
    return TrialResult(spec=spec(), replicas=replicas, parameters=99)


def test_an_id_is_the_same_on_every_machine_and_in_every_version():
    """Runs on disk are found again by it: should this change, what was done would be run again."""
    assert spec().id == "cdea42faaee2"


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "other"},
        {"dials": {"feature_dim": 8}},
        {"d_model": 33},
        {"layers": SPEC["layers"][:1]},
        {"layers": [*SPEC["layers"][:1], {"mixer": "attention", "settings": {}}]},
        {"layers": [{"mixer": "short-conv", "settings": {"kernel_size": 4}}, SPEC["layers"][1]]},
        {"layers": SPEC["layers"][::-1]},
        {"task": "other"},
        {"train": [OTHER]},
        {"train": [PART, OTHER]},
        {"train": [PART | {"examples": 11}]},
        {"train": [PART | {"params": {"seq_len": 64, "num_pairs": 5}}]},
        {"valid": [PART | {"examples": 11}]},
        {"test": [PART | {"examples": 21}]},
        {"valid": [OTHER], "test": [OTHER]},
        {"plugins": []},
        {"plugins": [{"path": "/a/mine.py", "source": "x = 2"}]},
    ],
    ids=str,
)
def test_whatever_the_numbers_depend_on_changes_the_id(changes):
    assert spec(**changes).id != spec().id


RECIPE = {
    "epochs": 2,
    "batch_size": 65,
    "learning_rates": [1e-3],
    "seeds": [0, 1],
    "data_seed": 1,
    "weight_decay": 0.2,
    "warmup": 0.2,
    "embedding_dropout": 0.1,
    "precision": "fp32",
    "init": "papers",
    "validate_every": 99,
    "threshold": None,
}


def test_every_field_of_the_recipe_changes_the_id():
    assert set(RECIPE) == set(Training.model_fields)
    ids = {spec(training=SPEC["training"] | {key: value}).id for key, value in RECIPE.items()}
    assert len(ids | {spec().id}) == len(RECIPE) + 1


def test_neither_the_place_and_order_of_plugins_nor_the_order_of_keys_changes_the_id():
    plugins = [{"path": "/a/mine.py", "source": "x = 1"}, {"path": "/b/yours.py", "source": "y = 1"}]
    moved = [plugin | {"path": "/elsewhere" + plugin["path"]} for plugin in plugins]
    assert spec(plugins=plugins).id == spec(plugins=moved).id == spec(plugins=plugins[::-1]).id
    assert spec(dials=dict(reversed(SPEC["dials"].items()))).id == spec().id


def test_specs_and_results_are_the_same_through_json():
    again = TrialSpec.model_validate_json(spec().model_dump_json())
    assert again == spec()
    assert again.id == spec().id
    assert [type(value) for value in again.dials.values()] == [int, int, float, bool, str, type(None)]
    for whole in (result(), TrialResult.failed(spec(), "boom")):
        assert TrialResult.model_validate_json(whole.model_dump_json()) == whole


def test_there_is_a_replica_for_each_learning_rate_and_seed():
    assert spec().replicas == ((1e-3, 0), (1e-3, 1), (1e-3, 2), (1e-2, 0), (1e-2, 1), (1e-2, 2))


def test_rows_have_the_documented_keys_one_for_each_replica_split_and_slice():
    rows = result().rows()
    assert all(set(row) == KEYS for row in rows)
    assert [(row["learning_rate"], row["seed"], row["split"]) for row in rows] == [
        (rate, seed, split) for rate, seed in spec().replicas for split in ("valid", "test")
    ]
    assert len(rows) == rows_expected(spec()) == 12
    last = rows[-1]
    assert (last["trial"], last["data_seed"], last["parameters"]) == (spec().id, 0, 99)
    assert (last["accuracy"], last["state_parts"]) == (0.5, {"kv": {"float32": 12}})
    assert last["params"] == PART["params"]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_rows_say_between_which_values_was_trained():
    train = [
        PART | {"params": {"seq_len": t, "num_pairs": n, "power": 0.5, "on": True}} for t, n in ((64, 8), (32, 16))
    ]
    (row, *_) = result().model_copy(update={"spec": spec(train=train)}).rows()
    assert row["trained"] == {"seq_len": [32, 64], "num_pairs": [8, 16]}


def test_a_failed_trial_is_one_row_with_the_same_keys():
    (row,) = TrialResult.failed(spec(), "Traceback: boom").rows()
    assert set(row) == KEYS
    assert (row["status"], row["error"], row["trial"]) == ("failed", "Traceback: boom", spec().id)
    assert row["split"] is row["accuracy"] is row["learning_rate"] is None


@pytest.mark.parametrize("record", [Plugin, LayerSpec, Slice, Training, TrialSpec, Score, ReplicaResult, TrialResult])
def test_no_record_takes_an_unknown_key(record):
    with pytest.raises(ValidationError, match=r"learning_rat\n.*not permitted"):
        record(learning_rat=1)


def test_records_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        spec().d_model = 1


@pytest.mark.parametrize(
    "recipe",
    [
        {"learning_rates": ()},
        {"learning_rates": (0.0,)},
        {"learning_rates": (-1e-3,)},
        {"learning_rates": (float("nan"),)},
        {"learning_rates": (float("inf"),)},
        {"learning_rates": (1e-3, 0.001)},
        {"seeds": ()},
        {"seeds": (-1,)},
        {"seeds": (2**63,)},
        {"seeds": (1, 1)},
        {"data_seed": 2**63},
        {"weight_decay": float("inf")},
        {"warmup": 1.0},
        {"threshold": 0.0},
        {"epochs": 0},
        {"init": "xavier"},
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_meant_is_refused(recipe):
    (key,) = recipe
    with pytest.raises(ValidationError, match=key):
        Training(**recipe)


def test_slices_must_be_told_apart_and_chosen_on_what_is_reported():
    with pytest.raises(ValidationError, match="T64-N4, T64-N4: two have one name"):
        spec(valid=[PART, PART], test=[PART, PART])
    with pytest.raises(ValidationError, match="must be the same"):
        spec(valid=[PART | {"params": {}}])
    for split in ("train", "valid", "test"):
        with pytest.raises(ValidationError, match=split):
            spec(**{split: []})
    assert len(spec(train=[PART, PART]).train) == 2  # nothing is reported of these


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["accuracy", "loss", "limit_bits"])
def test_a_number_that_json_does_not_know_is_no_score(key, value):
    with pytest.raises(ValidationError, match="finite"):
        score(**{key: value})
