"""The language model around the mixers: embedding -> pre-norm residual layers -> norm -> tied head.

The public block of the recall papers: no MLP, no positions, embedding dropout before the first layer, a final
LayerNorm. One model runs three ways that give the same numbers: `forward` over a whole sequence, `prefill` over a piece
of one, `step` over a token.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoology.architectures.base import ContextMixer, build_mixer
from zoology.architectures.state import Part, measure
from zoology.kernels.add_norm import add_norm
from zoology.kernels.take_rows import take_rows

PAPERS_STD = 0.02
"""Standard deviation of the papers' weights. Their models are 64 to 512 wide; at 16 the layers are all but silent."""


class Block(nn.Module):
    """Pre-norm residual: x + mixer(norm(x))."""

    def __init__(self, mixer: nn.Module, d_model: int):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.mixer = mixer

    def forward(self, x: Tensor, y: Tensor | None, context_length: int | None = None) -> tuple[Tensor, Tensor]:
        """The stream before a layer, and what the layer before adds to it, to the same after this layer."""
        x, u = add_norm(x, y, self.norm.weight, self.norm.bias, eps=self.norm.eps)
        y = self.mixer(u, context_length) if isinstance(self.mixer, ContextMixer) else self.mixer(u)
        return x, y.to(x.dtype)

    def read_context(self, x: Tensor) -> tuple[Tensor, Any]:
        if isinstance(self.mixer, ContextMixer):
            y, state = self.mixer.read_context(self.norm(x))
            return x + y, state
        return self.prefill(x, self.mixer.init_state(len(x)))  # type: ignore[operator]

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.mixer.prefill(self.norm(x), state)  # type: ignore[operator]
        return x + y, state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.mixer.step(self.norm(x), state)  # type: ignore[operator]
        return x + y, state


class LanguageModel(nn.Module):
    """A stack of mixers between an embedding and a head that share their weights.

    Args:
        vocab_size: number of token ids.
        d_model: width of the residual stream.
        layers: (mixer name, settings) from the embedding to the head.
        dropout: on the embedding, in training only.
        init: how weights begin, see `init_weights`: "papers" as published, "fan-in" for any width.

    Raises:
        InputError: a mixer or one of its settings is unknown, or does not fit d_model.
        ValueError: `init` is unknown.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        layers: Sequence[tuple[str, dict[str, Any]]],
        dropout: float = 0.0,
        init: str = "papers",
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(build_mixer(name, d_model, settings), d_model) for name, settings in layers)
        self.norm = nn.LayerNorm(d_model)
        if init not in ("fan-in", "papers"):
            raise ValueError(f"init {init!r}: must be fan-in or papers")
        self.apply(lambda module: init_weights(module, len(self.blocks), init))

    @property
    def reads_context(self) -> bool:
        """Whether a mixer of this model reads the context whole (`ContextMixer`): outputs inside it are not causal."""
        return any(isinstance(block.mixer, ContextMixer) for block in self.blocks)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (...) -> (..., d_model), with dropout in training."""
        return self.dropout(self.embedding(tokens))

    def features(self, x: Tensor, positions: Tensor | None = None, context_length: int | None = None) -> Tensor:
        """All between the embedding and the head, the last norm included: (batch, time, d_model) -> the same.

        Args:
            x: embedded tokens.
            positions: (batch, labels) times. What is asked for is made for these only, as (batch, labels, d_model).
            context_length: tokens of the context, at least 1. Only mixers that read it whole look at this, and need it.

        Raises:
            ValueError: a mixer reads the context whole, and `context_length` is None or below 1.
        """
        if self.reads_context and (context_length is None or context_length < 1):
            raise ValueError(f"context_length = {context_length}: this model reads its context whole: at least 1")
        y = None
        for block in self.blocks:
            x, y = block(x, y, context_length)
        x = x if y is None else x + y
        if positions is not None:
            x = take_rows(x, positions)
        return add_norm(x, None, self.norm.weight, self.norm.bias, eps=self.norm.eps)[1]

    def head(self, features: Tensor) -> Tensor:
        """The tied head: features (..., d_model) -> logits (..., vocab_size)."""
        return F.linear(features, self.embedding.weight)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, context_length: int | None = None) -> Tensor:
        """tokens (batch, time) -> logits (batch, time, vocab_size).

        Args:
            tokens: token ids.
            positions: (batch, labels) times. Logits are made for these only, as (batch, labels, vocab_size): the head
                is most of the work, and few positions carry a label.
            context_length: tokens of the context, at least 1. Only mixers that read it whole look at this, and need it.

        Raises:
            ValueError: as `features`.
        """
        return self.head(self.features(self.embed(tokens), positions, context_length))

    def init_state(self, batch_size: int) -> list[Any]:
        """The state of every layer before the first token."""
        return [block.mixer.init_state(batch_size) for block in self.blocks]  # type: ignore[union-attr, operator]

    def read_context(self, tokens: Tensor, logits: bool = True) -> tuple[Tensor, list[Any]]:
        """A whole context, tokens (batch, time) -> logits (batch, time, vocab_size), the state after it.

        The same as `prefill` from `init_state`, but for mixers that read the context whole. Without `logits`, this and
        the two below give what the head reads instead, (batch, time, d_model).
        """
        x, state = self.embed(tokens), []
        for block in self.blocks:
            x, new = block.read_context(x)  # type: ignore[operator]
            state.append(new)
        return self._read(x, logits), state

    def prefill(self, tokens: Tensor, state: list[Any], logits: bool = True) -> tuple[Tensor, list[Any]]:
        """tokens (batch, time), state -> logits (batch, time, vocab_size), state."""
        x, after = self.embed(tokens), []
        for block, before in zip(self.blocks, state, strict=True):
            x, new = block.prefill(x, before)  # type: ignore[operator]
            after.append(new)
        return self._read(x, logits), after

    def step(self, tokens: Tensor, state: list[Any], logits: bool = True) -> tuple[Tensor, list[Any]]:
        """tokens (batch,), state -> logits (batch, vocab_size), state."""
        x, after = self.embed(tokens), []
        for block, before in zip(self.blocks, state, strict=True):
            x, new = block.step(x, before)  # type: ignore[operator]
            after.append(new)
        return self._read(x, logits), after

    def _read(self, x: Tensor, logits: bool) -> Tensor:
        x = self.norm(x)
        return self.head(x) if logits else x

    @torch.no_grad()
    def measure_state(self, context: Tensor) -> list[Part]:
        """What one sequence leaves behind after its context, tensor by tensor, as `architectures.state` measures it.

        Args:
            context: tokens (1, context_length).
        """
        _, state = self.read_context(context)
        return measure(state)


def init_weights(module: nn.Module, num_layers: int, init: str) -> None:
    """Initial values of linear maps and embeddings; biases are 0.

    "papers": N(0, 0.02), and a linear map called `out_proj`, which adds to the residual stream, divided by
    sqrt(2 num_layers). "fan-in": linear maps have variance 1 / in_features and embeddings 1 / d_model, so that signals
    keep their size at any width, and gates that multiply as they are (`parameter._open_gate = True` on their bias)
    begin at 1; small models leave the plateau of recall several times earlier. A gate around 0 has a sign that the
    token chooses: what a convolution brings from the token before would arrive with that sign.

    A mixer keeps its own initial value of a parameter by setting `parameter._no_reinit = True` on it.
    """
    papers = init == "papers"
    if isinstance(module, nn.Linear):
        if not getattr(module.weight, "_no_reinit", False):
            nn.init.normal_(module.weight, std=PAPERS_STD if papers else module.in_features**-0.5)
        if module.bias is not None and not getattr(module.bias, "_no_reinit", False):
            nn.init.constant_(module.bias, 1.0 if not papers and getattr(module.bias, "_open_gate", False) else 0.0)
    elif isinstance(module, nn.Embedding) and not getattr(module.weight, "_no_reinit", False):
        nn.init.normal_(module.weight, std=PAPERS_STD if papers else module.embedding_dim**-0.5)
    for name, child in module.named_children() if papers else ():
        if name == "out_proj" and isinstance(child, nn.Linear) and not getattr(child.weight, "_no_reinit", False):
            with torch.no_grad():
                child.weight.div_(math.sqrt(2 * num_layers))
