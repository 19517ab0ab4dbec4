"""The selective scan in PyTorch: a diagonal recurrence whose step size, input and output maps depend on the token.

    h_t = exp(delta_t A) * h_{t-1} + (delta_t x_t) B_t,    y_t = C_t h_t + D * x_t

Source: Mamba, arXiv:2312.00752, equation 2 and algorithm 2 (the input is discretised as there: delta B, not the whole
zero-order hold).

Letters: B batch (and, as in the paper, the input map), T time, E channels, N d_state.
"""

from typing import Any

import torch
from torch import Tensor

CACHED = 2**19
"""Numbers in the states of a chunk on a CPU: 2 MB."""


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
    """A piece of a sequence.

    The recurrence is solved by pairs: two neighbouring steps are one step of the same kind, so T steps are T / 2 of
    them, and so on down to one. Every factor exp(delta A) is at most 1, so nothing overflows. The states (B, T, E, N)
    exist for one chunk at a time: the backward pass makes them anew from the one before each chunk. A CPU is fastest
    where the states of a chunk stay in its cache, a GPU where there are few chunks.

    Args:
        x: (B, T, E).
        delta: (B, T, E), the step sizes, at least 0.
        A: (E, N), at most 0.
        B, C: (B, T, N).
        D: (E,), or None for no skip.
        state: h before the piece, (B, E, N), or None at the beginning.
        chunk_size: tokens in a chunk. Changes no number beyond rounding. None for what is fast on the device.

    Returns:
        y (B, T, E) in the dtype of x, and h after the piece, (B, E, N). Both are computed in float32 or better.

    Raises:
        ValueError: shapes that do not fit each other, or a chunk size below 1.
    """
    _check(x, delta, A, B, C, state, dims=3)
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
    _check(x, delta, A, B, C, state, dims=2)
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
                ds = _scan_back(decay[1:], own)
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


def _chunks(time: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, time)) for start in range(0, time, size)]


def _contract(weights: Tensor, states: Tensor) -> Tensor:
    """The sum over n: weights (..., N), states (..., N, E) -> (..., E)."""
    return (weights.unsqueeze(-2) @ states).squeeze(-2)


def _states(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The decays (T, B, N, E), what is put in (T, B, E), and the states (T, B, N, E) of a chunk that h comes before."""
    decay = torch.exp(delta.unsqueeze(-2) * A)
    added = delta * x
    inputs = B.unsqueeze(-1) * added.unsqueeze(-2)
    inputs[0] += decay[0] * h
    return decay, added, _scan(decay, inputs)


def _scan(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along the first axis, from h = 0."""
    time = a.shape[0]
    if time == 1:
        return b
    whole = time - time % 2
    a0, a1, b0, b1 = a[0:whole:2], a[1:whole:2], b[0:whole:2], b[1:whole:2]
    odd = _scan(a0 * a1, torch.addcmul(b1, a1, b0))
    h = odd.new_empty(b.shape)
    h[0] = b[0]
    h[1::2] = odd
    h[2::2] = torch.addcmul(b[2::2], a[2::2], odd[: (time - 1) // 2])
    return h


def _scan_back(a: Tensor, b: Tensor) -> Tensor:
    """g_t = b_t + a_t g_{t+1} along the first axis, and g = b at the last time, to which no a belongs."""
    time, odd = b.shape[0], b.shape[0] % 2
    if time == 1:
        return b
    a0, a1, b0, b1 = a[odd::2], a[odd + 1 :: 2], b[odd::2], b[odd + 1 :: 2]
    first = _scan_back(a0[:-1] * a1, torch.addcmul(b0, a0, b1))
    g = first.new_empty(b.shape)
    g[odd::2] = first
    g[odd + 1 : -1 : 2] = torch.addcmul(b1[:-1], a1, first[1:])
    g[-1] = b[-1]
    if odd:
        g[0] = torch.addcmul(b[0], a[0], g[1])
    return g


def _check(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, dims: int) -> None:
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
