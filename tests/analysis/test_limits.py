"""The law against the task's own formula, the yardstick against what the field has measured."""

import math

import numpy as np
import pytest

from zoology.analysis.limits import outer_product, outer_product_of, simulate_outer_product, slice_limits, task_limit
from zoology.registry import InputError
from zoology.tasks.limits import tabulate
from zoology.tasks.mqar import Mqar

ONE = {(1e-3, 0): (0.5, 0.4)}


def with_limits(trial, limits, **more):
    return trial(ONE, slices=tuple(limits), limits=limits, **more)


def test_staircase_by_hand(rows, trial):
    made = with_limits(trial, {"a": ((0.5, 8.0), (1.0, 17.0)), "b": ((0.5, 24.0), (1.0, 100.0))})
    table = task_limit(rows(made))
    # a allows less than 50 % below 1 byte and all from 3 bytes on; b 50 % below 3 bytes and all from 13 on.
    assert list(table.itertuples(index=False, name=None)) == [(1, 0.5), (3, 0.75), (13, 1.0)]
    assert task_limit(rows(made), ["a"]).to_numpy().tolist() == [[1, 0.5], [3, 1.0]]


def test_a_slice_that_knows_of_no_limit_forbids_nothing(rows, trial):
    made = with_limits(trial, {"a": ((0.5, 8.0), (1.0, 16.0)), "b": ()})
    assert task_limit(rows(made)).to_numpy().tolist() == [[1, 0.75], [2, 1.0]]
    assert task_limit(rows(with_limits(trial, {"a": ()}))).empty


def test_rows_without_a_table_tell_of_no_error_alone(rows, trial):
    table = rows(trial(ONE, slices=("a", "b"))).assign(limit_bits=[np.nan, 30.5, np.nan, 30.5])
    assert slice_limits(table) == {"a": [], "b": [(1.0, 30.5)]}
    assert task_limit(table).to_numpy().tolist() == [[4, 1.0]]


@pytest.mark.parametrize("num_pairs", [4, 64])
def test_no_step_forbids_what_the_task_allows(rows, trial, num_pairs):
    task = Mqar(seq_len=256, num_pairs=num_pairs)
    table = task_limit(rows(with_limits(trial, {"T256": tabulate(task.state_bits)})))
    for size, recall in table.itertuples(index=False):
        assert task.state_bits(recall) > 8 * (size - 1)  # so with a byte less it is out of reach
    assert table["state_bytes"].iloc[-1] == math.ceil(task.state_bits(1.0) / 8)
    if num_pairs == 64:  # where a byte is less than a step of the table
        assert np.diff(table["recall"], prepend=0).max() < 0.026
        assert table["recall"].iloc[-1] > 0.99


def test_table_is_never_above_the_limit_and_leaves_out_what_is_unknown():
    task = Mqar(seq_len=64, num_pairs=8)
    table = tabulate(task.state_bits)
    assert all(0 < bits <= task.state_bits(p) < bits + 0.01 for p, bits in table)
    assert table[-1] == (1.0, pytest.approx(task.state_bits(1.0), abs=0.01))
    assert tabulate(lambda p: 0.02 * p)[0] == (0.5, 0.01)  # less than a hundredth is nothing
    assert tabulate(lambda p: 12.345 if p == 1 else None) == ((1.0, 12.34),)
    assert tabulate(lambda p: math.inf) == tabulate(lambda p: 0.0) == tabulate(lambda p: None) == ()


@pytest.mark.parametrize(("pairs", "dim"), [(64, 58), (128, 76), (256, 106)])
def test_outer_product_solves_at_the_known_sizes(pairs, dim):
    rng = np.random.default_rng(0)
    assert simulate_outer_product(pairs, 4096, dim, rng) > 0.985
    assert simulate_outer_product(pairs, 4096, round(0.8 * dim), rng) < 0.985


def test_outer_product_of_one_pair_cannot_fail_and_of_one_dimension_must():
    rng = np.random.default_rng(0)
    assert simulate_outer_product(1, 50, 8, rng) == 1
    assert simulate_outer_product(16, 1024, 1, rng) < 0.05


def test_outer_product_rises_with_its_bytes():
    table = outer_product([4, 16], 128, np.random.default_rng(0))
    assert (table["state_bytes"] == 4 * table["dim"] ** 2).all()
    assert table["recall"].iloc[0] < 0.1
    assert table["recall"].iloc[-1] > 0.999
    assert (table["recall"].diff().dropna() > -0.02).all()  # it is simulated
    again = outer_product([4, 16], 128, np.random.default_rng(0))
    assert table.equals(again)


@pytest.mark.parametrize(("pairs", "choices", "dim"), [(0, 5, 2), (6, 5, 2), (2, 5, 0)])
def test_outer_product_that_cannot_be(pairs, choices, dim):
    with pytest.raises(InputError, match=f"pairs = {pairs}, choices = {choices}, dim = {dim}"):
        simulate_outer_product(pairs, choices, dim, np.random.default_rng(0))


def test_outer_product_is_told_of_mqar_alone(rows, trial):
    params = {"a": {"vocab_size": 64, "num_pairs": 4}, "b": {"vocab_size": 64, "num_pairs": 2}}
    of_mqar = rows(trial(ONE, slices=("a", "b"), params=params))
    found = outer_product_of(of_mqar, np.random.default_rng(0), ["a"])
    assert found.equals(outer_product([4], 32, np.random.default_rng(0)))
    other = rows(trial(ONE, slices=("a", "b"), params=params, task="set-disjointness"))
    mixed = rows(trial(ONE, slices=("a", "b"), params=params | {"b": {"vocab_size": 8, "num_pairs": 2}}))
    old = rows(trial(ONE, slices=("a",)))
    for table in (other, mixed, old):
        assert outer_product_of(table, np.random.default_rng(0)).empty
