"""What every task's sequences have in common."""

import itertools

import numpy as np
import pytest

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, build_task


def check_batch(task, batch):
    """Shapes, types and ranges; the solver agrees; it says "query" where there is a label and nowhere else."""
    n = len(batch.tokens)
    assert batch.tokens.shape == batch.labels.shape == (n, task.seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    assert batch.tokens.min(initial=0) >= 0
    assert batch.tokens.max(initial=0) < task.vocab_size
    labelled = batch.labels != IGNORE
    assert (batch.labels[labelled] >= 0).all()
    assert (batch.labels[labelled] < task.vocab_size).all()
    assert labelled.any(axis=1).all()
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
    np.testing.assert_array_equal(task.roles(batch.tokens) == "query", labelled)
    assert 0 < task.context_length < task.seq_len


def check_refused(name, params, message):
    """The parameters are refused in one line that begins with the task's name and matches the message."""
    with pytest.raises(InputError, match=f"^{name}: .*{message}") as error:
        build_task(name, params)
    assert "\n" not in str(error.value)


def best_accuracy(answers, states):
    """The share of right answers that the best code reaches which keeps one of `states` states.

    Args:
        answers: (contents, questions), or (contents, questions, tokens) where the tokens of an answer are named one by
            one, those before being known. All contents are equally likely, and all questions.
    """
    answers = np.asarray(answers)
    answers = answers.reshape(*answers.shape[:2], -1)
    seen = []  # for each token asked, (contents,) what was said before it and what it is, as numbers from 0
    for question, token in np.ndindex(answers.shape[1:]):
        said = np.unique(answers[:, question, :token], axis=0, return_inverse=True)[1].ravel()
        seen.append((said, np.unique(answers[:, question, token], return_inverse=True)[1]))
    best = 0
    for code in itertools.product(range(states), repeat=len(answers)):
        right = 0
        for said, value in seen:
            counts = np.zeros((states, len(answers), len(answers)), int)
            np.add.at(counts, (np.array(code), said, value), 1)
            right += counts.max(axis=2).sum()
        best = max(best, right)
    return best / answers.size
