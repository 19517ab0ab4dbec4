"""How much state a task needs at least: the bounds that several tasks share."""

import math
from collections.abc import Callable

from zoology.registry import InputError

TABULATED = (*(k / 40 for k in range(1, 40)), 0.99, 0.999, 1.0)
"""Accuracies at which a limit is written down."""


def tabulate(state_bits: Callable[[float], float | None]) -> tuple[tuple[float, float], ...]:
    """(accuracy, bits) of a task's `state_bits` at `TABULATED`, where it is known, finite and more than nothing.

    Bits are rounded down to a hundredth: a limit may be stated too low, never too high.
    """
    found = []
    for accuracy in TABULATED:
        bits = state_bits(accuracy)
        if bits is not None and math.isfinite(bits) and bits >= 0.01:
            found.append((accuracy, math.floor(100 * bits) / 100))
    return tuple(found)


def recall_bits(accuracy: float, *, answers: int, choices: int, entropy: float | None = None) -> float:
    """The least state of a model that gives `answers` answers, each one of `choices`, right with this frequency.

    By Fano's inequality an answer that is right with probability p leaves at most h(p) + (1 - p) log2(choices - 1)
    bits of the truth open, h being the binary entropy, which is concave in p; so what the state tells about all of the
    answers is at least their entropy less `answers` times that at the mean accuracy. It holds for every model, also
    for one that knows beforehand which questions come and in what order.

    Args:
        accuracy: the share of right answers, 0..1, over all questions and sequences.
        answers: how many values are asked for, each of them once.
        choices: how many different values an answer can have.
        entropy: of all the answers together, in bits, given what is asked; independent uniform ones by default.

    Raises:
        InputError: the accuracy is not within 0..1.
    """
    check_accuracy(accuracy)
    if accuracy <= 1 / choices:  # guessing does as well
        return 0.0
    if entropy is None:
        entropy = answers * math.log2(choices)
    wrong = 1 - accuracy
    left_open = wrong * math.log2((choices - 1) / wrong) - accuracy * math.log2(accuracy) if wrong else 0.0
    return max(0.0, entropy - answers * left_open)


def distinct_entropy(count: int, choices: int) -> float:
    """log2 of how many ordered choices of `count` different values out of `choices` there are, in bits."""
    return (math.lgamma(choices + 1) - math.lgamma(choices - count + 1)) / math.log(2)


def check_accuracy(accuracy: float) -> None:
    """Refuse what is no frequency.

    Raises:
        InputError: the accuracy is not within 0..1.
    """
    if not 0 <= accuracy <= 1:
        raise InputError(f"accuracy = {accuracy}: must be from 0 to 1")
