"""The data of a trial: splits that never meet, a frozen test set, and batches that hold each sequence once."""

from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from trials import TINY, mqar_slice, trial

from zoology.data import SliceData, TrialData, _load, batches, load_data, pack, steps_per_epoch
from zoology.registry import InputError, load_plugin
from zoology.tasks.base import IGNORE, Batch, batch_hash, draw
from zoology.tasks.mqar import Mqar

SMALL = {"vocab_size": 8, "seq_len": 4, "num_pairs": 1}
"""Has a few dozen different sequences: 3 keys, 4 values, and a filler."""


def rows(parts: tuple[SliceData, ...]) -> set[tuple[int, ...]]:
    return {tuple(row) for part in parts for row in part.tokens.tolist()}


def same(a: TrialData, b: TrialData) -> bool:
    pairs = [pair for one, other in zip(a, b, strict=True) for pair in zip_longest(one, other)]
    return all(
        x is not None
        and y is not None
        and (x.name, x.task, x.hash) == (y.name, y.task, y.hash)
        and all(torch.equal(p, q) for p, q in zip(x[2:5], y[2:5], strict=True))
        for x, y in pairs
    )


@pytest.mark.parametrize("data_seed", range(3))
def test_splits_never_meet_not_even_among_a_few_dozen_sequences(data_seed):
    data = load_data(
        trial(
            train=(mqar_slice(60, **SMALL), mqar_slice(60, **SMALL)),
            valid=(mqar_slice(6, **SMALL),),
            test=(mqar_slice(6, **SMALL),),
            data_seed=data_seed,
        )
    )
    train, valid, test = map(rows, data)
    assert train.isdisjoint(valid)
    assert train.isdisjoint(test)
    assert valid.isdisjoint(test)
    assert len(train) > 12  # nearly all that the two others leave, in 120 draws


def test_splits_of_slices_with_equal_lengths_do_not_meet_either():
    """A training slice of one kind draws sequences that are the test set of another kind."""
    twice = SMALL | {"seq_len": 6, "passes": 2}
    once = SMALL | {"seq_len": 6}
    scored = (mqar_slice(30, **once), mqar_slice(3, **twice))
    train, valid, test = map(
        rows, load_data(trial(train=(mqar_slice(300, **twice), mqar_slice(300, **once)), valid=scored, test=scored))
    )
    assert train.isdisjoint(valid)
    assert train.isdisjoint(test)
    assert valid.isdisjoint(test)


def test_too_few_sequences_are_an_error():
    one = (mqar_slice(1, **SMALL),)
    with pytest.raises(InputError, match="mqar T4-N1: too few different sequences to keep train, validation and test"):
        load_data(trial(train=one, valid=one, test=(mqar_slice(500, **SMALL),)))


def test_the_test_set_is_frozen():
    data = load_data(trial())
    others = [
        load_data(trial(data_seed=7)),
        load_data(trial(train=(mqar_slice(50, num_pairs=3), mqar_slice(50)))),
        load_data(trial(valid=(mqar_slice(10),))),
        load_data(trial("linear-attention", d_model=8, seeds=(5,), learning_rates=(1.0,))),
    ]
    for other in others:
        assert torch.equal(other.test[0].tokens, data.test[0].tokens)
        assert other.test[0].hash == data.test[0].hash
    assert data.test[0].hash == batch_hash(draw(Mqar(**TINY), 96, seed=("test",)))


def test_train_and_validation_follow_the_data_seed():
    one, other = load_data(trial()), load_data(trial(data_seed=1))
    assert not rows(one.train) & rows(other.train)
    assert not rows(one.valid) & rows(other.valid)


def test_the_hash_is_that_of_the_tokens_and_the_right_answers():
    (part,) = load_data(trial()).test
    tokens = part.tokens.numpy().astype(np.int32)
    assert part.hash == batch_hash(Batch(tokens, part.task.solve(tokens)))


def test_equal_specs_get_equal_tensors_drawn_once():
    one = load_data(trial())
    assert load_data(trial(d_model=64, seeds=(3,))) is one  # the trials of a sweep share their data
    _load.cache_clear()
    again = load_data(trial())
    assert again is not one
    assert same(again, one)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": (mqar_slice(321),)},
        {"train": (mqar_slice(320), mqar_slice(320))},
        {"train": (mqar_slice(320, fillers="papers"),)},
        {"valid": (mqar_slice(65),)},
        {"test": (mqar_slice(97),)},
        {"data_seed": 1},
    ],
    ids=str,
)
def test_other_specs_get_other_data(changes):
    one = load_data(trial())
    other = load_data(trial(**changes))
    assert not same(one, other)
    _load.cache_clear()
    assert same(load_data(trial(**changes)), other)


PLUGIN = """
import numpy as np
from zoology import Batch, Task, register_task

@register_task("constant")
class Constant(Task):
    @property
    def context_length(self):
        return 1
    def sample(self, rng, n):
        tokens = rng.integers(8, size=(n, self.seq_len), dtype=np.int32)
        return Batch(tokens, self.solve(tokens))
    def solve(self, tokens):
        return np.full_like(tokens, ANSWER)
"""


def test_a_plugin_that_changed_gets_its_new_data(own_registries, tmp_path: Path):
    part = (mqar_slice(4).model_copy(update={"params": {"vocab_size": 16, "seq_len": 9}}),)
    spec = trial(train=part, valid=part, test=part, task="constant")
    for answer in (3, 5, 3):
        load_plugin(tmp_path / "mine.py", PLUGIN.replace("ANSWER", str(answer)))
        assert set(load_data(spec).test[0].targets.flatten().tolist()) == {answer}


TASK = Mqar(vocab_size=16, seq_len=6, num_pairs=1)


def labelled(*rows: tuple[int, ...]) -> Batch:
    labels = np.array([[IGNORE if x < 0 else x for x in row] for row in rows], dtype=np.int32)
    return Batch(np.arange(labels.size, dtype=np.int32).reshape(labels.shape) % 16, labels)


def test_labels_are_gathered_to_the_front_of_rows_that_have_more_fewer_or_none():
    batch = labelled((-1, 7, -1, 8, -1, 9), (-1, -1, -1, -1, -1, -1), (0, -1, -1, -1, -1, 3))
    part = pack("ragged", TASK, batch)
    assert part.positions.tolist() == [[1, 3, 5], [0, 0, 0], [0, 5, 0]]
    assert part.targets.tolist() == [[7, 8, 9], [IGNORE] * 3, [0, 3, IGNORE]]
    assert torch.equal(part.labelled(), torch.from_numpy(batch.labels != IGNORE))
    assert torch.equal(part.tokens, torch.from_numpy(batch.tokens).long())
    assert {part.tokens.dtype, part.positions.dtype, part.targets.dtype} == {torch.int64}


def test_packing_loses_no_label():
    batch = Mqar(vocab_size=64, seq_len=128, num_pairs=20).sample(np.random.default_rng(0), 50)
    part = pack("mqar", TASK.model_copy(update={"vocab_size": 64}), batch)
    back = torch.full(batch.labels.shape, IGNORE).scatter(1, part.positions, part.targets)
    assert torch.equal(back, torch.from_numpy(batch.labels).long())
    assert (part.positions.diff(dim=1) > 0).all()  # in the order of time


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (labelled((-1,) * 6, (-1,) * 6), "mqar odd: none of 2 sequences has a label"),
        (labelled((-1, 1, 2, 3, 4, 16)), "mqar odd: the label 16 is not in the vocabulary, 0 to 15"),
        (labelled((1,) * 6)._replace(tokens=np.full((1, 6), -1)), "the token -1 is not in the vocabulary"),
        (labelled((1,) * 6)._replace(tokens=np.full((1, 6), 99)), "the token 99 is not in the vocabulary"),
        (Batch(np.ones((1, 1), np.int32), np.ones((1, 1), np.int32)), "context_length = 2 must be from 1 to the 1 tok"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(batch, message):
    with pytest.raises(InputError, match=message):
        pack("odd", TASK, batch)


def part_of(n: int, first: int = 0, name: str = "part") -> SliceData:
    """n rows, each told by its number in every one of its tensors."""
    number = torch.arange(first, first + n).unsqueeze(1)
    return SliceData(name, TASK, number.expand(n, 6), number, number, "hash")


def epoch(generator: torch.Generator, *parts: SliceData, size: int = 4) -> list[SliceData]:
    drawn = [(part.name, part.rows(rows)) for part, rows in batches(parts, size, generator)]
    return [SliceData(name, TASK, *tensors, "hash") for name, tensors in drawn]


def test_an_epoch_holds_each_sequence_once_up_to_the_remainder():
    parts = (part_of(10, name="a"), part_of(8, 100, name="b"), part_of(3, 200, name="c"))
    seen: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    made = epoch(torch.Generator().manual_seed(0), *parts)
    for batch in made:
        numbers = batch.tokens[:, 0].tolist()
        assert batch.positions.flatten().tolist() == batch.targets.flatten().tolist() == numbers
        seen[batch.name] += numbers
    assert all(len(set(numbers)) == len(numbers) for numbers in seen.values())
    assert [len(numbers) for numbers in seen.values()] == [8, 8, 3]
    assert set(seen["b"]) == set(range(100, 108))
    assert set(seen["c"]) == {200, 201, 202}
    assert len(made) == steps_per_epoch(parts, 4) == 5


def test_slices_are_mixed_within_an_epoch():
    parts = (part_of(80, name="a"), part_of(80, 100, name="b"))
    order = "".join(batch.name for batch in epoch(torch.Generator().manual_seed(0), *parts))
    assert order.count("a") == order.count("b") == 20
    assert 8 <= order.count("ab") + order.count("ba") <= 32  # 20.5 +- 3 in random order, 1 if one came after the other


def test_the_order_is_the_generators_and_nothing_elses():
    def numbers(generator: torch.Generator) -> list[list[int]]:
        return [batch.tokens[:, 0].tolist() for batch in epoch(generator, part_of(32), part_of(32, 100))]

    generator = torch.Generator().manual_seed(1)
    first, second = numbers(generator), numbers(generator)
    torch.manual_seed(99)
    assert numbers(torch.Generator().manual_seed(1)) == first
    assert numbers(torch.Generator().manual_seed(2)) != first
    assert second != first
    assert sorted(chain.from_iterable(second)) == sorted(chain.from_iterable(first))


def test_what_is_left_over_differs_from_epoch_to_epoch():
    generator = torch.Generator().manual_seed(0)
    left = [set(range(7)) - {int(n) for b in epoch(generator, part_of(7)) for n in b.tokens[:, 0]} for _ in range(20)]
    assert set().union(*left) == set(range(7))
