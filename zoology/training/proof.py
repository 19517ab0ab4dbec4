"""Proves that what a trial trained runs from its state as it was scored, on the sequences of every slice."""

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoology.architectures.audit import step_together, verify_trained
from zoology.data import TrialData, context_of
from zoology.model import LanguageModel
from zoology.training.stack import Stack

SEQUENCES = 32
"""Sequences of each test slice on which a trained model must run from its state as it ran as a whole."""


class AuditError(RuntimeError):
    """A trained model does not run from its state as it was scored: its numbers would mean nothing."""


def prove(
    architecture: str,
    stack: Stack,
    flat: Tensor,
    replicas: Sequence[int],
    data: TrialData,
    fresh: Callable[[], LanguageModel],
    free: Callable[[], None],
) -> list[str]:
    """Prove the scores of trained models on every slice, on as many sequences as there is memory for.

    The first of them, whose state is measured, runs alone; so do others that cannot run together, or do not agree
    there.

    Args:
        architecture: what to call it in an error.
        stack: what was trained.
        flat: (R, P) the weights that were scored.
        replicas: those with a score.
        data: the sequences.
        fresh: builds an untrained model.
        free: gives back memory that is not used any more.

    Returns:
        What the user should know.

    Raises:
        AuditError: naming the slice, and what does not fit.
    """
    notes: list[str] = []
    others = replicas[1:] if len(replicas) > 2 else []
    weights = {name: t[list(others)] for name, t in stack.stacked(flat).items()}
    for test, valid in zip(data.test, data.valid, strict=True):
        # Validation helps out where the test set is a single sequence: rows are tried against one another.
        tokens = torch.cat([test.tokens, valid.tokens])[:SEQUENCES]
        scored = torch.cat([test.labelled(), valid.labelled()])[:SEQUENCES]
        context = context_of(stack.template, test.task)
        together = _stepped(fresh, weights, tokens, context, free) if others else None
        stepped = {} if together is None else dict(zip(others, together, strict=True))
        for row in replicas:
            model = stack.alone(flat, row)
            while True:
                mine = stepped[row][: len(tokens)] if row in stepped else None
                try:
                    finding = verify_trained(fresh, model, tokens, context, scored=scored, stepped=mine)
                    break
                except torch.OutOfMemoryError:
                    if len(tokens) < 4:
                        raise
                free()
                half = len(tokens) // 2
                notes.append(f"out of memory with {len(tokens)} sequences to prove {test.name} on: took {half}")
                tokens, scored = tokens[:half], scored[:half]
            if finding:
                raise AuditError(f"{architecture} on {test.name}, after training: {finding}")
    return notes


def _stepped(
    fresh: Callable[[], LanguageModel],
    weights: dict[str, Tensor],
    tokens: Tensor,
    context: int,
    free: Callable[[], None],
) -> Tensor | None:
    """What the heads of models read that run from their states together, or None where that cannot be."""
    with contextlib.suppress(Exception):  # alone, a mixer that is at fault says so
        return step_together(fresh, weights, tokens, context)
    free()  # what the attempt has left
    return None
