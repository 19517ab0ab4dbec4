"""What another model predicted, compared with the labels: accuracy and its standard error, slice by slice."""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, Batch, batch_hash
from zoology.tasks.export import Part, question_id, questions, read_file
from zoology.tasks.words import read, vocabulary


class Expected(NamedTuple):
    """What one record of an exported file must be answered with.

    slice: its name.
    row: of the sequence in its slice.
    answer: target tokens, or words.
    positions: where they are in the sequence; of no use with words.
    length: tokens in the sequence.
    """

    slice: str
    row: int
    answer: list[int] | list[str]
    positions: list[int]
    length: int


class Score(NamedTuple):
    """How right a slice is, or all of them.

    sequences, answers: how many of them.
    accuracy: the share of right answers (of words, where an answer has several); overall the mean of the slices, as a
        sweep's recall is.
    error: the standard error of the accuracy over draws of the sequences, NaN for a single sequence. Answers within a
        sequence are not independent, so sequences are counted, not answers.
    """

    slice: str
    sequences: int
    answers: int
    accuracy: float
    error: float


class Key(NamedTuple):
    """All that is needed to score: answers by id, and the hashes of the slices."""

    expected: dict[str, Expected]
    hashes: tuple[str, ...]
    words: bool


def key_of(parts: Sequence[Part], words: bool) -> Key:
    """The answers of sequences that were just drawn."""
    expected: dict[str, Expected] = {}
    for part in parts:
        spelled = vocabulary(part.task.vocab_size) if words else None
        for question in questions(part.batch, merge=not words):
            row, positions = question
            targets = part.batch.labels[row, positions]
            answer = targets.tolist() if spelled is None else spelled[targets].tolist()
            found = Expected(part.name, row, answer, positions.tolist(), part.task.seq_len)
            expected[question_id(part, question, words)] = found
    return Key(expected, tuple(part.hash for part in parts), words)


def key_from(path: Path, task: str) -> Key:
    """The answers in an exported file.

    Raises:
        InputError: it is none, is of another task, or is not as it was written.
    """
    head, rows = read_file(path)
    if head is None:
        raise InputError(f"{path} is no exported file: its first line has no header, as `zoology export` writes it")
    if head.get("task") != task:
        raise InputError(f"{path} is of task {head.get('task')}, not {task}")
    changed = InputError(f"{path} is not as it was written: export it again")
    try:
        slices, words = {part["slice"]: part for part in head["slices"]}, bool(head["words"])
        expected: dict[str, Expected] = {}
        tokens: dict[str, list[list[int]]] = {name: [] for name in slices}
        for _, record in rows:
            name, row = record["slice"], int(record["id"].split("-")[1])
            if words:
                found = Expected(name, row, record["answer"].split(), [], 0)
            else:
                found = Expected(name, row, record["targets"], record["positions"], len(record["tokens"]))
                tokens[name].append(record["tokens"])
            expected[record["id"]] = found
        counts = {name: sum(found.slice == name for found in expected.values()) for name in slices}
        if any(counts[name] != slices[name]["records"] for name in slices):
            raise changed
        if not words and any(_hash(tokens[name], expected, name) != slices[name]["hash"] for name in slices):
            raise changed
        return Key(expected, tuple(part["hash"] for part in slices.values()), words)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise changed from error


def _hash(tokens: list[list[int]], expected: dict[str, Expected], name: str) -> str:
    """The hash of a slice as a file gives it."""
    read_tokens = np.array(tokens, dtype=np.int32)
    labels = np.full(read_tokens.shape, IGNORE, dtype=np.int32)
    for row, found in enumerate(found for found in expected.values() if found.slice == name):
        labels[row, found.positions] = found.answer
    return batch_hash(Batch(read_tokens, labels))


def score(predictions: Path, key: Key) -> list[Score]:
    """The score of each slice, and of all together at the end.

    Args:
        predictions: JSONL or Parquet, a record for each one of the export, in any order: `id`, and `predictions` (a
            token for each labelled position, or for every position of the sequence) or, with words, `text`.
        key: the answers.

    Raises:
        InputError: the file cannot be read, is of other sequences, misses some, or a record is not as above.
    """
    right: dict[str, float] = {}
    for where, record in read_file(predictions)[1]:
        name = record.get("id")
        if not isinstance(name, str):
            raise InputError(f"{where}: no `id`; it is that of the exported record which is answered")
        if name not in key.expected:
            raise InputError(f"{where}: {_unknown(name, key)}")
        if name in right:
            raise InputError(f"{where}: {name} is answered a second time")
        given = (_text if key.words else _tokens)(where, record, key.expected[name])
        right[name] = sum(a == b for a, b in zip(given, key.expected[name].answer, strict=False))
    if not right:
        raise InputError(f"{predictions} is empty: it has a header and no predictions")
    missing = [name for name in key.expected if name not in right]
    if missing:
        raise InputError(
            f"{predictions} has {len(right)} predictions, and {len(key.expected)} are asked for: {missing[0]} is the "
            "first that is missing"
        )
    return list(_scores(right, key))


def _unknown(name: str, key: Key) -> str:
    """Why there is no such id."""
    hash_ = name.split("-")[0]
    if hash_ not in key.hashes:
        return (
            f"{name} is of other sequences, with hash {hash_}: here it is {' or '.join(key.hashes)}; give the flags "
            "they were exported with, or --against FILE"
        )
    if key.words != bool(re.fullmatch(r"[0-9a-f]+-\d+-\d+", name)):
        return f"{name} is of an export {'without' if key.words else 'with'} --words: score it in the same way"
    return f"{name} is no record of the export"


def _tokens(where: str, record: dict[str, Any], expected: Expected) -> list[int]:
    """The predicted token at each labelled position."""
    given = record.get("predictions")
    if not isinstance(given, list) or any(not isinstance(token, int) or isinstance(token, bool) for token in given):
        raise InputError(f"{where}: `predictions` must be a list of token ids, and is {_short(given)}")
    count = len(expected.answer)
    if len(given) == count:
        return given
    if len(given) == expected.length:
        return [given[position] for position in expected.positions]
    raise InputError(
        f"{where}: {len(given)} predictions, and the sequence has {count} labelled positions and {expected.length} "
        "tokens: give one for each of either"
    )


def _text(where: str, record: dict[str, Any], expected: Expected) -> list[str]:
    """The first words of what was generated, as many as the answer has."""
    given = record.get("text")
    if not isinstance(given, str):
        raise InputError(f"{where}: `text` must be what the model wrote after the prompt, and is {_short(given)}")
    return read(given, len(expected.answer))


def _short(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _scores(right: dict[str, float], key: Key) -> Iterator[Score]:
    slices: dict[str, dict[int, list[float]]] = {}
    for name, expected in key.expected.items():
        total = slices.setdefault(expected.slice, {}).setdefault(expected.row, [0, 0])
        total[0] += right[name]
        total[1] += len(expected.answer)
    scores = [_slice_score(name, np.array(list(rows.values()))) for name, rows in slices.items()]
    yield from scores
    if len(scores) > 1:
        yield Score(
            "all",
            sum(part.sequences for part in scores),
            sum(part.answers for part in scores),
            sum(part.accuracy for part in scores) / len(scores),
            math.sqrt(sum(part.error**2 for part in scores)) / len(scores),
        )


def _slice_score(name: str, counts: np.ndarray) -> Score:
    """From (sequences, 2) right answers and answers: their ratio, and its error by linearising it."""
    n, (hits, answers) = len(counts), counts.sum(axis=0)
    accuracy = hits / answers
    spread = ((counts[:, 0] - accuracy * counts[:, 1]) ** 2).sum()
    error = math.sqrt(n / (n - 1) * spread) / answers if n > 1 else math.nan
    return Score(name, n, int(answers), float(accuracy), float(error))
