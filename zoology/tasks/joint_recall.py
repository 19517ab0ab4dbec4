"""Joint recall: a table of contexts by keys; what a key means depends on the context that it is asked in."""

from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoology.tasks.base import IGNORE, Batch, Preset, Task, Tokens, register_task
from zoology.tasks.limits import recall_bits
from zoology.tasks.rows import distinct, filled, look_up


@register_task("joint-recall")
class JointRecall(Task):
    """Recall in context: the same keys have other values in every context; answer each key of each context again.

    Source: Overcoming Long-Context Limitations of State-Space Models, arXiv:2507.00449

    With M = vocab_size / 3, n_c = num_contexts and n_k = num_keys, a sequence is

    - the context part: n_c blocks, each a context token from 0..M-1 followed by the n_k keys (from M..2M-1, the same
      in every block, in an order of its own) with their values in that context, as `C k v k v ...`; the whole repeated
      `passes` times. All n_c n_k values are independent and uniform over 2M..3M-1, the distribution of the paper's
      theory, so what a key means in one context says nothing of another;
    - the question part: the contexts in a new order, each followed by its keys in a new order, as `C k k ...`,
      labelled at each key with its value in that context.

    The paper puts a question mark behind each key asked and the answer there. Here the label is at the key, as in
    `mqar`, and there are no question marks. There, each alphabet has 16 tokens and n_c and n_k are uniform over 5..16.
    """

    vocab_size: int = Field(48, ge=6, description="number of token ids, a third each for contexts, keys and values")
    num_contexts: int = Field(8, ge=1, description="contexts, each with a block of its own (n_c)")
    num_keys: int = Field(8, ge=1, description="keys, each with a value in every context (n_k)")
    passes: int = Field(1, ge=1, description="how often the table is shown")

    # Properties in place of the field of Task, as the size of the table says how long a sequence is.
    seq_len: ClassVar[property] = property(  # type: ignore[assignment]
        lambda self: self.context_length + self.num_contexts * (1 + self.num_keys),
        doc="Tokens in a sequence: the table as often as it is shown, then every context with its keys.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "JointRecall":
        if self.vocab_size % 3:
            raise ValueError(
                f"vocab_size = {self.vocab_size}: must be a multiple of 3, a third each for contexts, keys and values"
            )
        for name, count in (("num_contexts", self.num_contexts), ("num_keys", self.num_keys)):
            if count > self._third:
                raise ValueError(
                    f"{name} = {count}: vocab_size = {self.vocab_size} has {self._third} of them; use at least "
                    f"{3 * count}"
                )
        return self

    @property
    def slice_name(self) -> str:
        """Contexts, keys and the size of the alphabets: "C8-K8-M16"; then the passes, if more than one."""
        name = f"C{self.num_contexts}-K{self.num_keys}-M{self._third}"
        return name + (f"-P{self.passes}" if self.passes != 1 else "")

    @property
    def context_length(self) -> int:
        """All passes of the table: n_c (1 + 2 n_k) passes."""
        return self.passes * self.num_contexts * (1 + 2 * self.num_keys)

    @property
    def _third(self) -> int:
        """How many contexts, keys and values the vocabulary has (M)."""
        return self.vocab_size // 3

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """n independent sequences (n, seq_len), labelled at every key of the question part."""
        return filled(partial(self._fill, rng), n, self.seq_len)

    def _fill(self, rng: np.random.Generator, tokens: Tokens, labels: Tokens) -> None:
        """Write a block of sequences and labels into arrays, labels being all `IGNORE` before."""
        n, c, k, third = len(tokens), self.num_contexts, self.num_keys, self._third
        contexts = distinct(rng, n, c, third)
        keys = third + distinct(rng, n, k, third)
        table = 2 * third + rng.integers(third, size=(n, c, k), dtype=np.int32)

        def in_some_order() -> Tokens:
            """For each context the numbers of the keys, shuffled: (n, c, k)."""
            return rng.permuted(np.tile(np.arange(k), (n, c, 1)), axis=2)

        def put(order: Tokens) -> Tokens:
            return np.take_along_axis(np.broadcast_to(keys[:, None], (n, c, k)), order, axis=2)

        order = in_some_order()
        shown = np.empty((n, c, 1 + 2 * k), dtype=np.int32)
        shown[:, :, 0] = contexts
        shown[:, :, 1::2] = put(order)
        shown[:, :, 2::2] = np.take_along_axis(table, order, axis=2)
        tokens[:, : self.context_length] = np.tile(shown.reshape(n, -1), self.passes)

        turn = distinct(rng, n, c, c)  # the contexts in the order in which they are asked
        order = in_some_order()
        asked = np.empty((n, c, 1 + k), dtype=np.int32)
        asked[:, :, 0] = np.take_along_axis(contexts, turn, axis=1)
        asked[:, :, 1:] = put(order)
        answers = np.full((n, c, 1 + k), IGNORE, dtype=np.int32)
        answers[:, :, 1:] = np.take_along_axis(np.take_along_axis(table, turn[:, :, None], axis=1), order, axis=2)
        tokens[:, self.context_length :] = asked.reshape(n, -1)
        labels[:, self.context_length :] = answers.reshape(n, -1)

    def solve(self, tokens: Tokens) -> Tokens:
        """Labels (n, seq_len): a dictionary from (context, key) to value, asked with every key after the table."""
        n, c, k, third = len(tokens), self.num_contexts, self.num_keys, self._third
        shown = tokens[:, : c * (1 + 2 * k)].reshape(n, c, 1 + 2 * k)
        asked = tokens[:, self.context_length :].reshape(n, c, 1 + k)
        entries, questions = (
            (part[:, :, :1] * third + keys - third).reshape(n, c * k)
            for part, keys in ((shown, shown[:, :, 1::2]), (asked, asked[:, :, 1:]))
        )
        answers = look_up(entries, shown[:, :, 2::2].reshape(n, c * k), questions, third * third, IGNORE)
        labels = np.full(tokens.shape, IGNORE, dtype=np.int32)
        labels[:, self.context_length :].reshape(n, c, 1 + k)[:, :, 1:] = answers.reshape(n, c, k)
        return labels

    def roles(self, tokens: Tokens) -> NDArray[np.str_]:
        """ "context", "key", "value" or "query" for each token of (n, seq_len)."""
        row = (["context"] + ["key", "value"] * self.num_keys) * (self.num_contexts * self.passes)
        row += (["context"] + ["query"] * self.num_keys) * self.num_contexts
        return np.tile(np.array(row), (len(tokens), 1))

    def state_bits(self, accuracy: float = 1.0) -> float:
        """The least state at the end of the table, in bits, of any model that is right this often.

        The n_c n_k values are independent and uniform over M, and each is asked once: at accuracy 1 that is
        n_c n_k log2 M (the paper's remark 3.1), below it the rate of a uniform source at that frequency of errors.

        Raises:
            InputError: the accuracy is not within 0..1.
        """
        return recall_bits(accuracy, answers=self.num_contexts * self.num_keys, choices=self._third)

    @classmethod
    def presets(cls) -> dict[str, Preset]:
        """ "small" for a CPU; "paper" trains on 1.44M sequences, 10 000 of each size of the table, 5..16 by 5..16.

        The paper tests on 100 of each of the 144 sizes; six of them are scored here, each on its own.

        On "small" attention reaches 92 % at d_model = 32 (93 % with rotary positions). Tables of 2 by 3 and more need
        more training than a minute on a CPU.
        """
        small = [cls(vocab_size=size, num_contexts=2, num_keys=2) for size in (12, 24)]
        sizes = [(c, k) for c in range(5, 17) for k in range(5, 17)]
        tested = ((5, 5), (5, 16), (8, 8), (12, 12), (16, 5), (16, 16))
        return {
            "small": Preset.same(small, 45_000),
            "paper": Preset(
                train=tuple((cls(num_contexts=c, num_keys=k), 10_000) for c, k in sizes),
                test=tuple(cls(num_contexts=c, num_keys=k) for c, k in tested),
            ),
        }
