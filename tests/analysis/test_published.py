"""Published points: what each row must say, and what it may be compared with."""

import pytest

from zoology.analysis.published import COLUMNS, SETTINGS, published, same_setting
from zoology.registry import InputError

ONE = {(1e-3, 0): (0.5, 0.4)}


def test_every_point_says_where_it_is_from_and_how_it_was_read():
    table = published()
    assert list(table) == list(COLUMNS)
    assert not table.isna().any().any()
    assert table["accuracy"].between(0, 1).all()
    assert (table["state_bytes"] > 0).all()
    assert (table["source"].str.len() > 0).all()
    assert (table["how"].str.len() > 0).all()
    assert set(table["setting"]) <= set(SETTINGS)
    assert not table.duplicated(["architecture", "setting", "state_bytes"]).any()


def test_points_of_a_task():
    assert set(published("mqar")["task"]) == {"mqar"}
    with pytest.raises(InputError, match="no point of parity was published; there are some of mqar"):
        published("parity")


def test_only_the_same_slices_are_the_same_setting(rows, trial):
    params = {
        f"T{t}-N{n}": {"seq_len": t, "num_pairs": n, "vocab_size": v}
        for (t, n), v in SETTINGS["Based figure 2"].items()
    }
    assert same_setting(rows(trial(ONE, slices=tuple(params), params=params)), "Based figure 2")
    fewer = dict(list(params.items())[:-1])
    assert not same_setting(rows(trial(ONE, slices=tuple(fewer), params=fewer)), "Based figure 2")
    assert not same_setting(rows(trial(ONE)), "Based figure 2")
