"""How big a sweep is: the model widths, the training recipe and the sizes of the scored sets, by name."""

from dataclasses import dataclass, field
from typing import Any

from zoology.record import Training
from zoology.registry import InputError, did_you_mean


@dataclass(frozen=True)
class Scale:
    """Defaults of a sweep, each of which a flag overrides.

    d_model: the widths that are swept.
    training: the recipe.
    valid, test: sequences drawn of each scored slice.
    settings: given to every mixer that has a setting of that name, where the user gives none.
    """

    name: str
    d_model: tuple[int, ...]
    training: Training
    valid: int
    test: int
    settings: dict[str, Any] = field(default_factory=dict)


SMALL = Scale(
    name="small",
    d_model=(8, 16, 24, 32),
    training=Training(
        epochs=1,
        batch_size=32,
        learning_rates=(3e-3, 1e-2, 3e-2),
        weight_decay=0.1,
        warmup=0.1,
        validate_every=50,
        threshold=0.999,
    ),
    valid=128,
    test=1000,
)
"""Trains in seconds on a CPU: the scale of a first look, and of this project's own tests."""

PAPER = Scale(
    name="paper",
    d_model=(64, 128, 256, 512),
    training=Training(
        epochs=32,
        batch_size=256,
        learning_rates=(1e-3, 10**-2.5, 1e-2, 10**-1.5),
        weight_decay=0.1,
        warmup=0.0,
        embedding_dropout=0.1,
        init="papers",
        validate_every=702,  # an epoch: 390 full batches of the first slice, 78 of each other
        threshold=None,
    ),
    valid=1000,
    test=1000,
    settings={"dropout": 0.1},
)
"""The recipe of the recall papers (Based, arXiv:2402.18668, figure 2): for a GPU."""

SCALES = {scale.name: scale for scale in (SMALL, PAPER)}


def get_scale(name: str) -> Scale:
    """A scale by its name. Raises InputError for an unknown one, with the nearest."""
    if name not in SCALES:
        raise InputError(f"unknown scale {name!r}: {did_you_mean(name, SCALES)}")
    return SCALES[name]
