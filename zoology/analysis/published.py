"""Points that others have published, in `published.csv`: where each comes from, and how it was read."""

from importlib.resources import files

import pandas as pd

from zoology.registry import InputError

COLUMNS = {
    "architecture": str,
    "task": str,
    "setting": str,
    "state_bytes": int,
    "accuracy": float,
    "source": str,
    "how": str,
}

SETTINGS = {
    "Based figure 2": {
        (64, 4): 8192,
        (64, 8): 8192,
        (64, 16): 8192,
        (128, 32): 8192,
        (256, 64): 8192,
        (512, 128): 8192,
        (1024, 256): 8192,
    }
}
"""What a setting was tested on: (seq_len, num_pairs) -> vocab_size of each slice of MQAR."""


def published(task: str | None = None) -> pd.DataFrame:
    """The published points of a task, or all of them.

    Returns:
        `architecture`; `task` and `setting`, what was measured; `state_bytes` as claimed, unless `how` says what was
        corrected; `accuracy` in 0..1; `source`; `how`, the way it was read, and what is known to be wrong with it.

    Raises:
        InputError: nothing was published of the task.
    """
    with files(__package__).joinpath("published.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file, dtype=COLUMNS)
    if task is None:
        return table
    found = table[table["task"] == task].reset_index(drop=True)
    if found.empty:
        raise InputError(f"no point of {task} was published; there are some of {', '.join(sorted(set(table['task'])))}")
    return found


def same_setting(rows: pd.DataFrame, setting: str) -> bool:
    """Whether rows of MQAR were tested on the slices of a published setting, so that the numbers can be compared.

    Args:
        rows: of `records.load_runs`, those that a figure tells of.
        setting: of `published`.
    """
    params = [p or {} for p in rows.loc[rows["split"] == "test"].drop_duplicates("slice")["params"]]
    return {(p.get("seq_len"), p.get("num_pairs")): p.get("vocab_size") for p in params} == SETTINGS.get(setting)
