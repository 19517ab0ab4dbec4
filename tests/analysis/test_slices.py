"""What slices tell, against numbers worked out by hand."""

import math

import pytest

from zoology.analysis.records import load_runs
from zoology.analysis.slices import beyond_training, by_order, by_passes, by_position, by_slice, exceeds, sizes
from zoology.registry import InputError


def mqar(seq_len, num_pairs, passes=1):
    return {"vocab_size": 256, "seq_len": seq_len, "num_pairs": num_pairs, "passes": passes, "power": 0.01}


PARAMS = {"T64-N4": mqar(64, 4), "T64-N16": mqar(64, 16), "T128-N16": mqar(128, 16)}
TRAIN = (mqar(64, 4), mqar(64, 16), mqar(32, 8))


@pytest.fixture
def made(trial):
    return trial(
        {
            (1e-3, 0): ((0.9, 0.9, 0.9), (0.9, 0.7, 0.2)),
            (1e-3, 1): ((0.9, 0.9, 0.9), (0.8, 0.6, 0.5)),
            (1e-2, 0): ((0.1, 0.1, 0.1), (1.0, 1.0, 1.0)),
            (1e-2, 1): (None, None),
        },
        slices=tuple(PARAMS),
        params=PARAMS,
        train=TRAIN,
        state=(1024, 1024, 2048),
    )


def test_by_slice_at_the_rate_that_validation_chose(rows, made):
    table = by_slice(rows(made))
    assert table["slice"].tolist() == list(PARAMS)
    assert table["recall"].tolist() == pytest.approx([0.85, 0.65, 0.35])
    assert table["ci_low"].tolist() == pytest.approx([0.8, 0.6, 0.2])
    assert table["ci_high"].tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert table["state_bytes"].tolist() == [1024, 1024, 2048]
    assert table["beyond"].tolist() == ["", "", "seq_len"]
    assert table["params"].tolist() == list(PARAMS.values())
    assert sizes(table) == ["seq_len", "num_pairs"]
    assert table["recall_by_seed"].iloc[2] == {0: 0.2, 1: 0.5}


def test_trials_are_told_of_in_the_order_asked(rows, made, trial):
    other = trial({(1e-3, 0): (0.5, 0.4)}, architecture="mamba", slices=("T8",))
    both = rows(made, other)
    assert by_slice(both, [other.spec.id, made.spec.id])["trial"].tolist() == [other.spec.id, *[made.spec.id] * 3]
    assert len(by_slice(both)) == 4  # though they have no slice in common
    with pytest.raises(InputError, match="no trial 'nothing'"):
        by_slice(both, ["nothing"])


def test_rows_of_an_older_version_tell_what_their_names_say(rows, made, run, tmp_path):
    folder = run("old", made)
    file = folder / "results.jsonl"
    import json

    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for row in lines:
        for key in ("params", "trained", "limits"):
            del row[key]
    file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    table = by_slice(load_runs([folder]))
    assert table["params"].iloc[2] == {"seq_len": 128, "num_pairs": 16, "passes": 1}
    assert table["beyond"].tolist() == [None, None, None]  # it is not known
    assert beyond_training(table).empty


def test_what_exceeds_training():
    trained = {"seq_len": [32, 64], "num_pairs": [4, 16], "vocab_size": [256, 256]}
    assert exceeds(mqar(64, 16), trained) == ""
    assert exceeds(mqar(16, 2), trained) == ""  # shorter is not beyond
    assert exceeds(mqar(64, 17), trained) == "num_pairs"
    assert exceeds(None, trained) is None
    assert exceeds(mqar(64, 16), None) is None


def test_beyond_training_is_paired_over_seeds(rows, made):
    (row,) = beyond_training(by_slice(rows(made))).to_dict("records")
    # within: seed 0 has 0.8 and seed 1 has 0.7; beyond: 0.2 and 0.5
    assert (row["within"], row["beyond"], row["loss"]) == pytest.approx((0.75, 0.35, 0.4))
    assert (row["ci_low"], row["ci_high"], row["n_seeds"]) == pytest.approx((0.2, 0.6, 2))
    assert row["slices"] == ("T128-N16",)


def sets(a, b, passes=1):
    return {"vocab_size": 64, "size_a": a, "size_b": b, "question": "which", "passes": passes}


def test_order_pairs_the_two_orders_of_the_same_sizes(rows, trial):
    params = {"A4-B16": sets(4, 16), "A16-B4": sets(16, 4), "A8-B16": sets(8, 16), "A16-B4-P2": sets(16, 4, 2)}
    made = trial(
        {(1e-3, 0): (0.9, (0.9, 0.4, 0.5, 0.1)), (1e-3, 1): (0.9, (0.7, 0.3, 0.5, 0.1))},
        task="set-disjointness",
        slices=tuple(params),
        params=params,
    )
    (row,) = by_order(by_slice(rows(made))).to_dict("records")
    assert (row["small"], row["large"]) == (4, 16)
    assert (row["small_first"], row["large_first"], row["gain"]) == pytest.approx((0.8, 0.35, 0.45))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((0.4, 0.5))


def test_order_of_a_task_without_sets(rows, made):
    with pytest.raises(InputError, match="in both orders"):
        by_order(by_slice(rows(made)))


def test_passes_are_compared_between_trials_that_are_alike(rows, trial):
    def of(passes, recalls, architecture="based"):
        name = "T64-N4" if passes == 1 else f"T64-N4-P{passes}"
        seeds = {(1e-3, seed): (0.9, recall) for seed, recall in enumerate(recalls)}
        return trial(seeds, architecture=architecture, slices=(name,), params={name: mqar(32 * passes, 4, passes)})

    table = by_slice(rows(of(1, (0.5, 0.6)), of(2, (0.9, 0.8)), of(2, (1.0, 1.0), architecture="mamba")))
    (row,) = by_passes(table).to_dict("records")
    assert (row["architecture"], row["passes"], row["slice"]) == ("based", 2, "T64-N4-P2")
    assert (row["once"], row["repeated"], row["gain"]) == pytest.approx((0.55, 0.85, 0.3))
    assert (row["ci_low"], row["ci_high"], row["n_seeds"]) == pytest.approx((0.2, 0.4, 2))
    with pytest.raises(InputError, match="--passes 1 and with --passes 2"):
        by_passes(by_slice(rows(of(1, (0.5, 0.6)))))


def test_one_seed_has_no_interval(rows, trial):
    table = by_slice(rows(trial({(1e-3, 0): (0.5, 0.4)})))
    assert math.isnan(table["ci_low"].item())


def test_recall_over_where_the_answers_stand(rows, trial):
    table = rows(trial({(1e-3, 0): (0.9, 0.9), (1e-3, 1): (0.9, 0.5), (1e-2, 0): (0.1, 0.1), (1e-2, 1): (0.1, 0.1)}))
    with pytest.raises(InputError, match="no row tells where the answers stand"):
        by_position(table)
    told = {0: [[8, 15, 40, 1.0], [16, 63, 60, 0.8]], 1: [[8, 15, 40, 0.5], [16, 63, 60, 0.5]]}
    table["by_position"] = [
        told[seed] if split == "test" and rate == 1e-3 else []
        for seed, split, rate in zip(table["seed"], table["split"], table["learning_rate"], strict=True)
    ]
    found = by_position(table)
    assert found[["slice", "first", "last", "answers", "recall", "n_seeds"]].values.tolist() == [
        ["T64-N4", 8, 15, 40, 0.75, 2],
        ["T64-N4", 16, 63, 60, 0.65, 2],
    ]
    assert found.loc[0, ["ci_low", "ci_high"]].tolist() == [0.5, 1.0]
