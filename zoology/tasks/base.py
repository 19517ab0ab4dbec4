"""What a task is: a generator of token sequences with labels, an exact solver, and how much state the task needs.

NumPy only: a task is usable without torch and without our trainer. All randomness comes from the generator passed in.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoology.registry import InputError, Registry

IGNORE = -100
"""The label of a position that is not scored. What torch's cross-entropy ignores by default."""

Tokens = NDArray[np.int32]


class Batch(NamedTuple):
    """Sequences and what should follow them.

    tokens: (n, seq_len) int32 token ids.
    labels: (n, seq_len) int32; at each scored position the token that a model must predict *after* reading the token
        there, `IGNORE` elsewhere.
    """

    tokens: Tokens
    labels: Tokens


class Preset(NamedTuple):
    """Which slices a task is trained and scored on.

    train: (task, how many examples) for each training slice.
    test: the slices that are scored, each on its own. Validation draws from the same settings, never the same rows.
    """

    train: "tuple[tuple[Task, int], ...]"
    test: "tuple[Task, ...]"

    @classmethod
    def same(cls, slices: "Sequence[Task]", examples: int) -> "Preset":
        """Trained on so many examples of each slice that is scored."""
        return cls(train=tuple((task, examples) for task in slices), test=tuple(slices))


class Task(BaseModel):
    """One setting (slice) of a task. Fields are its parameters, checked when it is made.

    Subclasses have the fields `vocab_size` and `seq_len` (or properties of those names) and write `context_length`,
    `sample` and `solve`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = ""
    """The registered name, set by `register_task`."""

    vocab_size: int = Field(8192, ge=4, description="number of token ids")
    seq_len: int = Field(64, ge=1, description="tokens in a sequence")

    @property
    def slice_name(self) -> str:
        """A short name that tells this slice from the others of the same task."""
        return f"T{self.seq_len}"

    @property
    def context_length(self) -> int:
        """How many tokens come before the first that a model could need its memory for. State is measured there."""
        raise NotImplementedError

    @property
    def prompt_length(self) -> int:
        """How many tokens a model that reads its prompt whole is given at once: the context, unless a task says more.

        Never a token that answers a question of the task, so it ends at the first of them.
        """
        return self.context_length

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences with their labels."""
        raise NotImplementedError

    def solve(self, tokens: Tokens) -> Tokens:
        """The right labels for tokens (n, seq_len), worked out from the definition of the task."""
        raise NotImplementedError

    def state_bits(self, accuracy: float = 1.0) -> float | None:
        """The least state, in bits at the end of the context, of any model right this often; None if unknown."""
        return None

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """What each token of tokens (n, seq_len) is, in a word ("key", "value", "query", "filler"), for readers."""
        answered = self.solve(tokens) != IGNORE
        return np.where(answered, "query", "token")

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """Slices by the name of a scale. "small" trains in seconds on a CPU; "paper" is what was published."""
        return {"small": Preset.same([cls()], 20_000)}


C = TypeVar("C", bound=type[Task])

tasks: Registry[type[Task]] = Registry("task")


def register_task(name: str) -> Callable[[C], C]:
    """A class decorator that makes a task known under `name` (kebab-case).

    Raises:
        InputError: the name is taken or malformed, or the class is no task.
    """

    def add(cls: C) -> C:
        if not (isinstance(cls, type) and issubclass(cls, Task)):
            raise InputError(f"task {name!r} must be a subclass of zoology.Task")
        for method in ("context_length", "sample", "solve"):
            if getattr(cls, method) is getattr(Task, method):
                raise InputError(f"task {name!r} does not define {method}")
        tasks.register(name)(cls)
        cls.name = name
        return cls

    return add


def build_task(name: str, params: dict[str, Any]) -> Task:
    """A slice by its task's name and parameters.

    Raises:
        InputError: the name or a parameter is unknown, or the values are impossible together.
    """
    cls = tasks.get(name)
    try:
        return cls(**params)
    except ValidationError as error:
        raise InputError(f"{name}: {'; '.join(_describe(cls, e) for e in error.errors())}") from error


def _describe(cls: type[Task], error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"no parameter {where!r}; it has {', '.join(cls.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where} = {error['input']!r}: {message[:1].lower()}{message[1:]}" if where else message


def draw(task: Task, n: int, *, seed: tuple[int | str, ...], avoid: Iterable[Batch] = (), tries: int = 100) -> Batch:
    """n sequences that depend on the slice and the seed alone, none of which is in `avoid`.

    Args:
        task: the slice.
        n: how many.
        seed: what tells this draw from others, such as ("train", 0).
        avoid: batches whose sequences must not come up again: what keeps a test set out of the training set.
        tries: how often a sequence that must not come up is drawn anew before giving up.

    Raises:
        InputError: the slice has too few different sequences.
    """
    rng = np.random.Generator(np.random.PCG64(_entropy(task, seed)))
    tokens, labels = (np.ascontiguousarray(part, dtype=np.int32) for part in task.sample(rng, n))
    taken = [_rows(batch.tokens) for batch in avoid if batch.tokens.shape[1:] == tokens.shape[1:]]
    if taken:
        seen = np.unique(np.concatenate(taken))
        bad = np.flatnonzero(np.isin(_rows(tokens), seen))
        while bad.size:
            if not tries:
                raise InputError(
                    f"{task.name} {task.slice_name}: too few different sequences to keep train, validation and "
                    "test apart; use a larger vocabulary or longer sequences"
                )
            tries -= 1
            again = task.sample(rng, bad.size)
            tokens[bad], labels[bad] = again
            bad = bad[np.isin(_rows(tokens[bad]), seen)]
    return Batch(tokens, labels)


SPLITS = ("test", "valid", "train")
"""In the order in which they are drawn: each avoids all that come before it."""


def draw_splits(
    plan: Mapping[str, Sequence[tuple[Task, int]]], data_seed: int, last: str = "train"
) -> dict[str, list[Batch]]:
    """The splits of a trial, a batch for each of their slices, none with a sequence of another split.

    Args:
        plan: (slice, how many sequences) of each split.
        data_seed: what valid and train depend on. Test depends on its slices alone: it is frozen.
        last: the split after which to stop.

    Raises:
        InputError: there are too few different sequences to keep the splits apart.
    """
    drawn: dict[str, list[Batch]] = {}
    for split in SPLITS[: SPLITS.index(last) + 1]:
        seed = ("test",) if split == "test" else (split, data_seed)
        avoid = [batch for batches in drawn.values() for batch in batches]
        drawn[split] = [draw(task, n, seed=seed, avoid=avoid) for task, n in plan[split]]
    return drawn


def batch_hash(batch: Batch) -> str:
    """SHA-256 over the shapes and the little-endian bytes of tokens and labels, its first 16 hex digits."""
    digest = hashlib.sha256(repr(batch.tokens.shape).encode())
    for part in batch:
        digest.update(np.ascontiguousarray(part, dtype="<i4").tobytes())
    return digest.hexdigest()[:16]


def _rows(tokens: Tokens) -> NDArray[np.void]:
    """Each sequence as one opaque value, so that whole sequences can be compared and sorted."""
    packed = np.ascontiguousarray(tokens)
    return packed.view(np.dtype((np.void, packed.dtype.itemsize * packed.shape[1]))).ravel()


def _entropy(task: Task, seed: tuple[int | str, ...]) -> int:
    words = json.dumps([task.name, task.model_dump(mode="json"), *seed], sort_keys=True)
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], "little")
