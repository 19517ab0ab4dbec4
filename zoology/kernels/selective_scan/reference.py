"""The selective scan in PyTorch.

Letters: B batch (and, as in the paper, the input map), T time, E channels, N d_state.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from zoology.kernels.selective_scan import blocks, pairs

CACHED = 2**17
"""Numbers in the states of a chunk on a CPU: half a megabyte."""


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    state: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same function as `zoology.kernels.selective_scan`.

    The tokens of a chunk are taken in blocks on a CPU, by pairs on a GPU. The states (B, T, E, N) exist for one chunk
    at a time: the backward pass makes them anew from the one before each chunk. A CPU is fastest where the states of a
    chunk stay in its cache, a GPU where there are few chunks.
    """
    check(x, delta, A, B, C, state, dims=3)
    if chunk_size is None:
        states = max(1, x.shape[0] * A.numel())
        chunk_size = min(max(CACHED // states, 4), 64) if x.device.type == "cpu" else 128
    if chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size}: must be at least 1")
    wide = torch.promote_types(x.dtype, torch.float32)
    if state is None:
        state = x.new_zeros(x.shape[0], *A.shape, dtype=wide)
    if x.shape[1] == 0:
        return x, state
    # Time first, so that a time is a block; channels last, as they are the longest axis to vectorise over.
    u, dt, b, c = (t.to(wide).transpose(0, 1) for t in (x, delta, B, C))
    y, h, _ = _SelectiveScan.apply(u, dt, A.to(wide).mT, b, c, state.to(wide).mT, chunk_size)
    y = y if D is None else torch.addcmul(y, u, D.to(wide))
    return y.transpose(0, 1).to(x.dtype), h.mT.contiguous()


def selective_scan_step(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `selective_scan`: x, delta (B, E), B, C (B, N), state (B, E, N) -> y (B, E), state.

    Raises:
        ValueError: as `selective_scan`.
    """
    check(x, delta, A, B, C, state, dims=2)
    wide = torch.promote_types(x.dtype, torch.float32)
    u, dt, b, c = (t.to(wide) for t in (x, delta, B, C))
    h = torch.exp(dt.unsqueeze(-1) * A.to(wide)) * state + (dt * u).unsqueeze(-1) * b.unsqueeze(-2)
    y = (h * c.unsqueeze(-2)).sum(-1)
    y = y if D is None else torch.addcmul(y, u, D.to(wide))
    return y.to(x.dtype), h


class _SelectiveScan(torch.autograd.Function):
    """x, delta (T, B, E), A (N, E), B, C (T, B, N), h (B, N, E) -> y (T, B, E), h, and h before each chunk."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        outputs, before = [], []
        with torch.autocast(x.device.type, enabled=False):
            for piece in _chunks(x.shape[0], chunk):
                before.append(h)
                _, _, states = _states(x[piece], delta[piece], A, B[piece], h)
                outputs.append(_contract(C[piece], states))
                h = states[-1].clone()  # a view would keep the whole chunk alive
        return torch.cat(outputs), h, torch.stack(before)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, _, ctx.chunk = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*tensors, output[2])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, A, B, C, before = ctx.saved_tensors
        grads: list[list[Tensor]] = [[], [], [], []]
        dA = torch.zeros_like(A)
        with torch.autocast(x.device.type, enabled=False):
            for index, piece in reversed(list(enumerate(_chunks(x.shape[0], ctx.chunk)))):
                u, dt, b, c, g = x[piece], delta[piece], B[piece], C[piece], dy[piece]
                decay, added, states = _states(u, dt, A, b, before[index])
                # What each state's gradient is: its own output's, and the next state's through the decay between.
                own = c.unsqueeze(-1) * g.unsqueeze(-2)
                own[-1] += dh
                ds = _scans(x).scan_back(decay, own)
                dlog = ds * decay  # of delta A: times the state before, below
                dh = dlog[0].clone()
                dlog[0] *= before[index]
                dlog[1:] *= states[:-1]
                dinput = _contract(b, ds)
                grads[0].append(dinput * dt)
                grads[1].append(torch.addcmul((dlog * A).sum(-2), dinput, u))
                grads[2].append((ds * added.unsqueeze(-2)).sum(-1))
                grads[3].append((states * g.unsqueeze(-2)).sum(-1))
                dA = dA + (dlog * dt.unsqueeze(-2)).sum((0, 1))
        dx, ddelta, dB, dC = (torch.cat(parts[::-1]) for parts in grads)
        return dx, ddelta, dA, dB, dC, dh, None


def _scans(x: Tensor) -> ModuleType:
    """A CPU is fastest with few and long operations, a GPU with few that depend on one another."""
    return pairs if x.is_cuda else blocks


def _chunks(time: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, time)) for start in range(0, time, size)]


def _contract(weights: Tensor, states: Tensor) -> Tensor:
    """The sum over n: weights (..., N), states (..., N, E) -> (..., E)."""
    return (weights.unsqueeze(-2) @ states).squeeze(-2)


def _states(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The decays (T, B, N, E), what is put in (T, B, E), and the states (T, B, N, E) of a chunk that h comes before."""
    decay = torch.exp(delta.unsqueeze(-2) * A)
    added = delta * x
    return decay, added, _scans(x).scan(decay, B.unsqueeze(-1) * added.unsqueeze(-2), h)


def check(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, dims: int) -> None:
    fits = x.dim() == dims and x.shape == delta.shape and A.dim() == 2 and B.shape == C.shape
    if not fits or x.shape[-1] != A.shape[0] or B.shape != (*x.shape[:-1], A.shape[1]):
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, delta, A, B, C))
        time = "T, " if dims == 3 else ""
        raise ValueError(
            f"x, delta, A, B, C have the shapes {shapes}: must be (B, {time}E), (B, {time}E), (E, N), (B, {time}N), "
            f"(B, {time}N)"
        )
    if state is not None and state.shape != (x.shape[0], *A.shape):
        raise ValueError(f"state has the shape {tuple(state.shape)}: must be {(x.shape[0], *A.shape)}")
