"""One training step of a stack: plain on a CPU; on a GPU compiled, and captured in a CUDA graph for each length."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoology.data import SliceData
from zoology.kernels.ahead import compile_ahead
from zoology.kernels.inline import inline
from zoology.training import adamw
from zoology.training.adamw import AdamW
from zoology.training.capture import first_line, graph_of
from zoology.training.stack import Stack

SHAPES = 64
"""Slices that may be compiled in one trial, each for its own length and number of labels."""
WARM_UPS = 3
"""Steps before a capture: lazy initialisation and autotuning must be over. What they change is taken back."""

COMPILED: dict[str, Any] = {"dynamic": False, "options": {"deterministic": True}}
"""How steps are compiled. Without `deterministic` the compiler times several ways to cut a sum and takes the fastest,
which may be another one the next time: the same spec would give other bytes."""


class Steps:
    """Steps one after another, eagerly.

    Attributes:
        loss_sum: (R,) losses added up since `take_losses`.
        notes: what did not go as usual.
        compiling: seconds spent on compiling and capturing.
    """

    def __init__(self, stack: Stack, optimiser: AdamW, dropout: float):
        self.stack, self.optimiser, self.dropout = stack, optimiser, dropout
        self.loss_sum = torch.zeros(stack.size, dtype=torch.float64, device=stack.flat.device)
        self.notes: list[str] = []
        self.compiling = 0.0

    def __call__(self, part: SliceData, rows: Tensor) -> None:
        """Train on some sequences of a slice. The host does not wait for the device."""
        self._run(part, rows)

    def take_losses(self) -> Tensor:
        """The sum of the losses since the last call, (R,): NaN where one of them was."""
        taken = self.loss_sum.clone()
        self.loss_sum.zero_()
        return taken

    def keep(self, replicas: Tensor) -> None:
        """Go on with some of the replicas only."""
        self.stack.keep(replicas)
        self.optimiser.keep(self.stack, replicas)
        self.loss_sum = self.loss_sum[replicas]

    def _run(self, part: SliceData, rows: Tensor) -> None:
        losses, gradients = self._gradients(part, rows, self._loss)
        self._update(gradients)
        self.loss_sum += losses.detach()

    def _gradients(
        self, part: SliceData, rows: Tensor, loss: Callable[..., Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        batch = part.rows(rows)
        # New leaves in each step: the graph of an old one may belong to another stream, which a capture must not meet.
        leaves = self.stack.leaves_of(self.stack.flat)
        context = part.task.prompt_length if self.stack.template.reads_context else None
        losses = loss(leaves, *batch, context, self.dropout)
        return losses, torch.autograd.grad(losses.sum(), leaves, materialize_grads=True)

    def _loss(self, *args: Any) -> Tensor:
        return self.stack.mean_loss(*args)

    def _update(self, gradients: tuple[Tensor, ...]) -> None:
        self.optimiser.step(gradients)


class _Captured(NamedTuple):
    """A CUDA graph and the row numbers that it reads."""

    graph: torch.cuda.CUDAGraph
    rows: Tensor


class GraphSteps(Steps):
    """Steps on a GPU. The loss and the update are compiled; forward, backward and update together are one CUDA graph
    for each slice, so that the host only names the rows and starts it.

    What cannot be compiled runs as it is, what cannot be captured is launched kernel by kernel; `notes` say so.

    Args:
        lengths: those of slices that differ in their number of labels alone: one compilation is for all of these.
    """

    def __init__(
        self, stack: Stack, optimiser: AdamW, dropout: float, compiled: bool = True, lengths: Collection[int] = ()
    ):
        super().__init__(stack, optimiser, dropout)
        self._lengths = lengths
        self._graphs: dict[tuple[int, ...], _Captured | None] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # one for all warm-ups: cuBLAS takes memory for itself on each
        if compiled:
            inline()
        torch.compiler.reset()  # what was compiled for another trial is of no use, and counts towards Dynamo's limit
        self._compiled_loss = torch.compile(stack.mean_loss, **COMPILED) if compiled else None
        self._compiled_update = torch.compile(_flat_update, fullgraph=True, **COMPILED) if compiled else None

    def prepare(self, parts: Iterable[SliceData], rows: int) -> None:
        """Begin to compile the kernels of steps on so many sequences of each slice."""

        def run() -> None:
            for part in parts:
                # A quarter of a batch takes the same kernels, and less memory than a compiled step.
                few = torch.arange(min(max(1, rows // 4), len(part.tokens)), device=part.tokens.device)
                self._gradients(part, few, self.stack.mean_loss)

        with self._untouched():
            compile_ahead(run)

    def __call__(self, part: SliceData, rows: Tensor) -> None:
        key = (id(part.tokens), len(rows))
        if key not in self._graphs:
            begin = time.perf_counter()
            self._graphs[key] = self._capture(part, rows)
            self.compiling += time.perf_counter() - begin
        captured = self._graphs[key]
        if captured is None:
            self._run(part, rows)
        else:
            captured.rows.copy_(rows)
            captured.graph.replay()

    def keep(self, replicas: Tensor) -> None:
        raise RuntimeError("a captured stack cannot shrink: its graphs are for all of its replicas")

    def _capture(self, part: SliceData, rows: Tensor) -> _Captured | None:
        """The graph of a step on this slice, or None where there can be none."""
        rows = rows.clone()
        with self._untouched(), torch._dynamo.config.patch(recompile_limit=SHAPES):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._warm_up(part, rows)
            torch.cuda.current_stream().wait_stream(self._stream)
        try:
            graph = graph_of(lambda: self._run(part, rows), pool=self._pool)
        except torch.OutOfMemoryError:  # a smaller group shall be captured
            raise
        except RuntimeError as error:
            self.notes.append(f"its steps are not captured in a CUDA graph: {first_line(error)}")
            return None
        return _Captured(graph, rows)

    def _warm_up(self, part: SliceData, rows: Tensor) -> None:
        if self._compiled_loss is not None:
            try:
                self._run(part, rows)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler may raise: the same code runs without it
                self._compiled_loss = self._compiled_update = None
                self.notes.append(f"its steps are not compiled: {first_line(error)}")
        for _ in range(WARM_UPS):
            self._run(part, rows)

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[None]:
        """Training and the random state are afterwards as they were before."""
        o = self.optimiser
        tensors = (self.stack.flat, o.mean, o.square, o.count, self.loss_sum)
        kept = [t.clone() for t in tensors]
        random = torch.cuda.get_rng_state()
        try:
            yield
        finally:
            with torch.no_grad():
                for t, before in zip(tensors, kept, strict=True):
                    t.copy_(before)
            torch.cuda.set_rng_state(random)

    def _loss(self, leaves: list[Tensor], tokens: Tensor, positions: Tensor, targets: Tensor, *rest: Any) -> Tensor:
        if self._compiled_loss is None:
            return super()._loss(leaves, tokens, positions, targets, *rest)
        if tokens.shape[1] in self._lengths:
            for labels in (positions, targets):
                torch._dynamo.maybe_mark_dynamic(labels, 1)
        return self._compiled_loss(leaves, tokens, positions, targets, *rest)

    def _update(self, gradients: tuple[Tensor, ...]) -> None:
        if self._compiled_update is None:
            super()._update(gradients)
        else:
            o = self.optimiser
            with torch.no_grad():
                self._compiled_update(gradients, o.flat, o.mean, o.square, o.count, *o.constants)


def _flat_update(gradients: tuple[Tensor, ...], flat: Tensor, *rest: Tensor) -> None:
    adamw.update(adamw.flat_gradient(gradients, flat), flat, *rest)
