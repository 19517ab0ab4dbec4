"""What the six tasks of MAD share: how many sequences they train on, and the grids that vary their difficulty.

Source: Mechanistic Design and Scaling of Hybrid Architectures, arXiv:2403.17844, and its repository athms/mad-lab
"""

from collections.abc import Sequence
from typing import Any

from zoology.tasks.base import Preset, Task

EXAMPLES = 12_800
"""Training sequences of MAD's baselines. (Memorization has 256.) MAD tests on 1280."""

FEWER = (6_400, 3_200, 1_600, 800)
"""The training-set sizes that MAD varies a baseline by."""


def mad_presets(
    cls: type[Task],
    *,
    small: Preset,
    changes: dict[str, Sequence[Any]],
    examples: int = EXAMPLES,
    fewer: Sequence[int] = FEWER,
    paper: dict[str, Any] | None = None,
    test: dict[str, Any] | None = None,
) -> dict[str, Preset]:
    """The presets of one task of MAD.

    Args:
        cls: the task; its defaults are MAD's baseline.
        small: the preset for a CPU, tested with the `test` parameters too.
        changes: the values of each parameter that MAD varies, one at a time, from the baseline.
        examples: training sequences of the baseline.
        fewer: the training-set sizes that MAD varies.
        paper: parameters in which MAD's own sequences differ from the defaults.
        test: those in which its test sequences differ from its training sequences.

    Returns:
        "small"; "paper", the baseline; and one preset for each change, since MAD trains a model of its own for each:
        "paper-PARAMETER-VALUE", as "paper-vocab-size-32", and "paper-examples-COUNT".
    """
    paper, test = paper or {}, test or {}

    def preset(count: int, **change: Any) -> Preset:
        return Preset(train=((cls(**paper, **change), count),), test=(cls(**paper, **test, **change),))

    presets = {
        "small": small._replace(test=tuple(task.model_copy(update=test) for task in small.test)),
        "paper": preset(examples),
    }
    for parameter, values in changes.items():
        for value in values:
            presets[f"paper-{parameter.replace('_', '-')}-{value}"] = preset(examples, **{parameter: value})
    return presets | {f"paper-examples-{count}": preset(count) for count in fewer}
