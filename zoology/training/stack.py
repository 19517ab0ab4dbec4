"""R models of one architecture as one: every parameter with a leading replica axis, one forward for all.

Mixers stay plain modules over (batch, time, d_model): `torch.func.vmap` carries the replica axis through them. The
embedding and the head, which are most of the work of a small model, run outside of it on the stacked weights.

Letters: R replicas, B batch, T time, N labels in a sequence, D d_model, V vocabulary, P parameters of one model.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from zoology.kernels.embedding import column_numbers, embedding, row_numbers
from zoology.kernels.linear import linear
from zoology.kernels.linear_cross_entropy import linear_cross_entropy
from zoology.model import LanguageModel
from zoology.tasks.base import IGNORE

EMBEDDING = "embedding.weight"


class Entry(NamedTuple):
    """Where a trainable parameter lies in the flat buffer, and what it is."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def of(self, flat: Tensor) -> Tensor:
        """The parameter, stacked, as a view of a flat buffer (R, P): (R, *shape), complex numbers as pairs."""
        pair = (2,) if self.dtype.is_complex else ()
        return (
            flat[:, self.start : self.stop].unflatten(1, (*self.shape, *pair))
            if self.shape or pair
            else (flat[:, self.start])
        )


class _Features(nn.Module):
    """`LanguageModel.features` as a forward, which is what `functional_call` calls."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, positions: Tensor, context_length: int | None) -> Tensor:
        return self.model.features(x, positions, context_length)


class SplitLinear(nn.Linear):
    """The same linear map as a GPU is quick at, see `kernels.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Stack:
    """R models that share their architecture, and nothing else.

    Attributes:
        flat: (R, P) every trainable parameter of every replica, in float32 or better. A step writes into it.
        template: one of the models. Its modules run with the weights of all; its own weights mean nothing.
        compute: the dtype of matrix products where it is not that of the weights (bfloat16 on a GPU), or None.
    """

    def __init__(self, models: Sequence[LanguageModel], compute: torch.dtype | None = None):
        self.template = models[0]
        self.size = len(models)
        self.compute = compute
        if next(self.template.parameters()).is_cuda:
            for module in self.template.modules():
                if type(module) is nn.Linear:
                    module.__class__ = SplitLinear
        self.entries: list[Entry] = []
        wide = torch.float32
        stop = 0
        for name, p in self.template.named_parameters():
            if p.requires_grad:
                start, stop = stop, stop + p.numel() * (2 if p.is_complex() else 1)
                self.entries.append(Entry(name, start, stop, tuple(p.shape), p.dtype))
                wide = torch.promote_types(wide, p.dtype.to_real())
        self.flat = torch.stack([_flatten(model, self.entries, wide) for model in models])
        trained = {entry.name for entry in self.entries}
        self.constant = {
            f"model.{name}": torch.stack([dict(_tensors(model))[name].detach() for model in models])
            for name, _ in _tensors(self.template)
            if name not in trained
        }
        self._all_constant = self.constant
        self._features = _Features(self.template)
        width = next((entry.shape[1] for entry in self.entries if entry.name == EMBEDDING), 0)
        self._columns = column_numbers(width, self.flat.device)

    def leaves_of(self, flat: Tensor) -> list[Tensor]:
        """Tensors that share the memory of a flat buffer, one for each trainable parameter, to differentiate by."""
        return [entry.of(flat).detach().requires_grad_() for entry in self.entries]

    def keep(self, replicas: Tensor) -> None:
        """Go on with some of the replicas only."""
        self.size = len(replicas)
        self.flat = self.flat[replicas]
        self.constant = {name: t[replicas] for name, t in self.constant.items()}

    def whole(self, flat: Tensor) -> "Stack":
        """This stack with all the replicas that it began with, for weights of all of them."""
        self.flat, self.constant, self.size = flat, self._all_constant, len(flat)
        return self

    def features(
        self, leaves: Sequence[Tensor], tokens: Tensor, positions: Tensor, context_length: int | None, dropout: float
    ) -> Tensor:
        """What the head reads at the labelled positions: tokens (B, T), positions (B, N) -> (R, B, N, D).

        Args:
            leaves: the weights, as `leaves_of` gives them.
            tokens, positions: one batch, the same for all replicas.
            context_length: where the context ends.
            dropout: on the embedding.
        """
        weights = {
            f"model.{entry.name}": _as_parameter(leaf, entry) for entry, leaf in zip(self.entries, leaves, strict=True)
        }
        table = weights[f"model.{EMBEDDING}"]
        rows, columns = None, None
        if dropout:
            rows, columns = row_numbers(self._columns, self.size, *tokens.shape), self._columns
        embed = partial(embedding, dtype=self.compute, dropout=dropout)
        if self.size == 1:
            x = embed(table.squeeze(0), tokens, None if rows is None else rows.squeeze(0), columns).unsqueeze(0)
        else:
            x = vmap(embed, in_dims=(0, None, None if rows is None else 0, None))(table, tokens, rows, columns)
        device = x.device.type
        with torch.autocast(device, self.compute, enabled=self.compute is not None, cache_enabled=False):

            def run(weights: dict[str, Tensor], constant: dict[str, Tensor], x: Tensor) -> Tensor:
                return functional_call(self._features, (weights, constant), (x, positions, context_length))

            if self.size == 1:
                # Squeezed, not indexed: the gradient of x[0] is a zeroed tensor and a copy into it.
                first = [{name: t.squeeze(0) for name, t in group.items()} for group in (weights, self.constant)]
                return run(*first, x.squeeze(0)).unsqueeze(0)
            return vmap(run, randomness="different")(weights, self.constant, x)

    def losses(
        self,
        leaves: Sequence[Tensor],
        tokens: Tensor,
        positions: Tensor,
        targets: Tensor,
        context_length: int | None,
        dropout: float = 0.0,
        judge: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Per replica and labelled position: loss and, if asked to `judge`, whether the most likely token is right,
        (R, B N) each."""
        hidden = self.features(leaves, tokens, positions, context_length, dropout).flatten(1, 2)
        if self.compute is not None:
            hidden = hidden.to(self.compute)
        weight = next(leaf for entry, leaf in zip(self.entries, leaves, strict=True) if entry.name == EMBEDDING)
        return linear_cross_entropy(hidden, weight, targets.flatten(), ignore_index=IGNORE, judge=judge)

    def mean_loss(
        self,
        leaves: Sequence[Tensor],
        tokens: Tensor,
        positions: Tensor,
        targets: Tensor,
        context_length: int | None,
        dropout: float = 0.0,
    ) -> Tensor:
        """The mean cross-entropy over the labels of a batch, (R,); 0 where it has none."""
        loss, _ = self.losses(leaves, tokens, positions, targets, context_length, dropout, judge=False)
        return loss.sum(1) / (targets != IGNORE).sum().clamp_min(1)

    def stacked(self, flat: Tensor) -> dict[str, Tensor]:
        """Every parameter and buffer of all replicas, from a flat buffer: (R, *shape) each."""
        found = {e.name: _as_parameter(e.of(flat.detach()), e) for e in self.entries}
        return found | {name.removeprefix("model."): t for name, t in self.constant.items()}

    def weights(self, flat: Tensor, replica: int) -> dict[str, Tensor]:
        """The state dict of one replica, from a flat buffer."""
        return {name: t[replica].clone() for name, t in self.stacked(flat).items()}

    def alone(self, flat: Tensor, replica: int) -> LanguageModel:
        """The template with the weights of one replica: the very modules that were trained, run one model at a time."""
        with torch.no_grad():
            mine = self.weights(flat, replica)
            for name, tensor in _tensors(self.template):
                tensor.copy_(mine[name])
        return self.template


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _flatten(model: nn.Module, entries: Sequence[Entry], dtype: torch.dtype) -> Tensor:
    parameters = dict(model.named_parameters())
    parts = [parameters[entry.name].detach() for entry in entries]
    return torch.cat([(torch.view_as_real(p) if p.is_complex() else p).flatten().to(dtype) for p in parts])


def _as_parameter(leaf: Tensor, entry: Entry) -> Tensor:
    """A leaf in the parameter's own dtype."""
    if entry.dtype.is_complex:
        return torch.view_as_complex(leaf).to(entry.dtype)
    return leaf.to(entry.dtype)
