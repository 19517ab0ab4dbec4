"""The selective scan in Triton, and the `torch.library` ops around it.

The kernels are in `programs`, which says how they go about it.

Letters: R replicas, B batch (and, as in the paper, the input map), T time, E channels, N d_state.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from zoology.kernels.replicas import channels_dense, fold_all, unfold
from zoology.kernels.selective_scan.programs import selective_scan_gradient_kernel, selective_scan_kernel

MAX_STATES = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = 4
"""Tokens that are read at once; in the backward pass those whose states are in the registers at once. Of 8 they do not
fit."""


class Blocks(NamedTuple):
    """Channels of a program, and its warps."""

    width: int
    warps: int


def blocks_of(states: int, channels: int) -> Blocks:
    """Both kernels' blocks, for N and E: 16 numbers of states in a thread. Programs of large states have more warps,
    not fewer than 8 channels."""
    states = triton.next_power_of_2(states)
    width = min(max(1, triton.next_power_of_2(channels)), max(8, 512 // states))
    return Blocks(width, max(1, width * states // 512))


def _words(blocks: Blocks, channels: int, n: int) -> dict[str, int]:
    """What kernels are compiled for."""
    states = triton.next_power_of_2(n)
    whole = states == n and channels % blocks.width == 0
    return {"STATES": states, "WIDTH": blocks.width, "CHUNK": CHUNK, "WHOLE": whole}


def takes(x: Tensor, delta: Tensor, A: Tensor) -> bool:
    """Whether the kernels can take the dtypes, and as large a state; see `limits`."""
    return A.shape[-1] <= MAX_STATES and all(t.dtype in DTYPES for t in (x, delta, A))


def limits(x: Tensor, delta: Tensor, A: Tensor) -> None:
    """Refuse what the kernels cannot take.

    Raises:
        ValueError: naming the limit.
    """
    if A.shape[-1] > MAX_STATES:
        raise ValueError(f"N = {A.shape[-1]}: the Triton kernel takes 1 to {MAX_STATES}")
    for name, tensor in (("x", x), ("delta", delta), ("A", A)):
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}: the Triton kernel takes float32, bfloat16 and float16")


def launch_forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    keep: bool,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward kernel, with `blocks` from the table or given; see `forward`."""
    replicas, batch, time, e = x.shape
    n = A.shape[2]
    y = x.new_empty(x.shape)
    last, kept = _states(x, A, keep)
    if not last.numel() or not time:
        return y, last if state is None or not last.numel() else state.to(torch.float32).clone(), kept
    x, delta = channels_dense(x), channels_dense(delta)
    b = blocks or blocks_of(n, e)
    selective_scan_kernel[(replicas * batch * triton.cdiv(e, b.width),)](
        x, delta, A.contiguous(), B.contiguous(), C.contiguous(), x if D is None else D.contiguous(),
        x if state is None else state.contiguous(), y, last, kept, batch, time, e, n,
        *x.stride()[:3], *delta.stride()[:3], **_words(b, e, n),
        SKIP=D is not None, STATE=state is not None, KEEP=keep, num_warps=b.warps,
    )  # fmt: skip
    return y, last, kept


def _states(x: Tensor, A: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Empty states in float32: after the piece, (R, B, E, N); and before each chunk of it, (R, B, chunks, E, N), or no
    chunk unless `keep`."""
    replicas, batch, time, e = x.shape
    shapes = ((e, A.shape[2]), (-(-time // CHUNK) if keep else 0, e, A.shape[2]))
    last, kept = (x.new_empty(replicas, batch, *shape, dtype=torch.float32) for shape in shapes)
    return last, kept


def launch_backward(
    grad: Tensor,
    by_last: Tensor | None,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    kept: Tensor,
    blocks: Blocks | None = None,
) -> tuple[Tensor, ...]:
    """The backward kernel, with `blocks` from the table or given; see `gradient`."""
    replicas, batch, time, e = x.shape
    n = A.shape[2]
    grads = _like(x, delta, A, B, C, D)
    if not x.numel():
        for tensor in grads[2:]:
            tensor.zero_()
        return grads if by_last is None else (*grads[:6], by_last.to(torch.float32).clone())
    by_x, by_delta, *_, by_state = grads
    grad, x, delta = (channels_dense(t) for t in (grad, x, delta))
    b = blocks or blocks_of(n, e)
    parts = triton.cdiv(e, b.width)
    by_a = by_state.new_empty(replicas, batch, e, n)
    by_b, by_c = (by_state.new_empty(parts, replicas, batch, time, n) for _ in range(2))
    by_d = by_state.new_empty(replicas, batch, e if D is not None else 0)
    selective_scan_gradient_kernel[(replicas * batch * parts,)](
        grad, x if by_last is None else by_last.contiguous(), x, delta, A.contiguous(), B.contiguous(), C.contiguous(),
        x if D is None else D.contiguous(), kept, by_x, by_delta, by_a, by_b, by_c, by_d, by_state, batch, time, e, n,
        *grad.stride()[:3], *x.stride()[:3], *delta.stride()[:3], **_words(b, e, n),
        SKIP=D is not None, LAST=by_last is not None, num_warps=b.warps,
    )  # fmt: skip
    added = (by_b.sum(0).to(B.dtype), by_c.sum(0).to(C.dtype), by_d.sum(1).to(by_d.dtype if D is None else D.dtype))
    return by_x, by_delta, by_a.sum(1).to(A.dtype), *added, by_state


def _like(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, ...]:
    """Empty gradients, dense, with no element for None; the state's in float32."""
    dense = [t.new_empty(t.shape) for t in (x, delta, A, B, C)]
    by_d = x.new_empty(x.shape[0], 0, dtype=torch.float32) if D is None else D.new_empty(D.shape)
    return *dense, by_d, x.new_empty(*x.shape[:2], *A.shape[1:], dtype=torch.float32)


@torch.library.custom_op("zoology::selective_scan", mutates_args=())
def forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x, delta (R, B, T, E), A (R, E, N), B, C (R, B, T, N), D (R, E), state (R, B, E, N).

    Returns:
        y as x; the state after the piece, (R, B, E, N) float32; and the states before each chunk, (R, B, chunks, E, N)
        float32, or none unless `keep`.
    """
    return launch_forward(x, delta, A, B, C, D, state, keep)


@forward.register_fake
def _(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), *_states(x, A, keep)


@torch.library.custom_op("zoology::selective_scan_gradient", mutates_args=())
def gradient(
    grad: Tensor,
    by_last: Tensor | None,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, delta, A, B, C, D (with no element for None) and the state, for those of y and of the state
    after the piece."""
    return launch_backward(grad, by_last, x, delta, A, B, C, D, kept)  # type: ignore[return-value]


@gradient.register_fake
def _(
    grad: Tensor,
    by_last: Tensor | None,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    kept: Tensor,
) -> tuple[Tensor, ...]:
    return _like(x, delta, A, B, C, D)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.keep = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, by_last: Tensor | None, by_kept: Tensor | None) -> tuple[Any, ...]:
    if by_kept is not None:
        raise RuntimeError("selective_scan has no second derivative in Triton: use implementation='reference'")
    x, delta, A, B, C, D, state, kept = ctx.saved_tensors
    if grad is None and by_last is None:
        return (None,) * 8
    if not ctx.keep:
        kept = forward(x, delta, A, B, C, D, state, True)[2]
    grad = x.new_zeros(x.shape) if grad is None else grad
    by_x, by_delta, by_a, by_b, by_c, by_d, by_state = gradient(grad, by_last, x, delta, A, B, C, D, kept)
    by_state = None if state is None else by_state.to(state.dtype)
    return by_x, by_delta, by_a, by_b, by_c, None if D is None else by_d, by_state, None


def _no_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("selective_scan has no second derivative in Triton: use implementation='reference'")


forward.register_autograd(_backward, setup_context=_setup)
gradient.register_autograd(_no_second)


@forward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    found = forward(*fold_all(args[:7], in_dims[:7], info.batch_size), args[7])
    return tuple(unfold(x, info.batch_size) for x in found), (0, 0, 0)


@gradient.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    found = gradient(*fold_all(tensors, in_dims, info.batch_size))
    return tuple(unfold(x, info.batch_size) for x in found), (0,) * 7
