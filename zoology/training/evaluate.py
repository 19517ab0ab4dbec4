"""Accuracy and loss of every replica of a stack on every slice, with one transfer to the host for all."""

from typing import NamedTuple

import torch
from torch import Tensor

from zoology.data import SliceData
from zoology.tasks.base import IGNORE
from zoology.training.stack import Stack

EVALUATION_TOKENS, CPU_EVALUATION_TOKENS = 8 * 256 * 256, 64 * 64
"""Tokens in a step of evaluation, over all replicas. More leave a CPU's caches, and take it a quarter longer."""


class Measured(NamedTuple):
    """Accuracy and mean loss over the labelled positions of a slice; None of a model that diverged."""

    accuracy: float | None
    loss: float | None


@torch.no_grad()
def evaluate_all(stack: Stack, flat: Tensor, parts: tuple[SliceData, ...]) -> list[list[Measured]]:
    """Each replica on each slice, for the weights in a flat buffer (R, P): by replica, then by slice."""
    stack.template.eval()
    leaves = stack.leaves_of(flat)
    sums = torch.stack([_evaluate(stack, leaves, part) for part in parts], dim=1).tolist()
    return [[Measured(right / count, loss / count) for right, loss, count in replica] for replica in sums]


def _evaluate(stack: Stack, leaves: list[Tensor], part: SliceData) -> Tensor:
    """(R, 3): right answers, summed loss and labels of a slice, in float64 on its device."""
    sums = torch.zeros(stack.size, 3, dtype=torch.float64, device=part.tokens.device)
    tokens = CPU_EVALUATION_TOKENS if sums.device.type == "cpu" else EVALUATION_TOKENS
    size = max(1, tokens // (part.tokens.shape[1] * stack.size))
    for start in range(0, len(part.tokens), size):
        rows = slice(start, start + size)
        targets = part.targets[rows]
        loss, right = stack.losses(leaves, part.tokens[rows], part.positions[rows], targets, part.task.prompt_length)
        sums[:, 0] += right.sum(1)
        sums[:, 1] += loss.double().sum(1)
        sums[:, 2] += (targets != IGNORE).sum()
    return sums
