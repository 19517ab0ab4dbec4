"""The selective scan of Mamba: a diagonal recurrence whose step size, input and output maps depend on the token.

    h_t = exp(delta_t A) * h_{t-1} + (delta_t x_t) B_t,    y_t = C_t h_t + D * x_t

Source: Mamba, arXiv:2312.00752, equation 2 and algorithm 2 (the input is discretised as there: delta B, not the whole
zero-order hold).

Letters: B batch (and, as in the paper, the input map), T time, E channels, N d_state.
"""

import torch
from torch import Tensor

from zoology.kernels.replicas import choose
from zoology.kernels.selective_scan import reference
from zoology.kernels.selective_scan.reference import selective_scan_step

__all__ = ["selective_scan", "selective_scan_step"]


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
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """A piece of a sequence. Every factor exp(delta A) is at most 1, so nothing overflows.

    Args:
        x: (B, T, E).
        delta: (B, T, E), the step sizes, at least 0.
        A: (E, N), at most 0.
        B, C: (B, T, N).
        D: (E,), or None for no skip.
        state: h before the piece, (B, E, N), or None at the beginning.
        chunk_size: tokens in a chunk of the reference. Changes no number beyond rounding. None for what is fast on the
            device.
        implementation: "triton", for up to 256 states; "reference"; or None for the device's: on a GPU Triton, but the
            reference for more states and for float64.

    Returns:
        y (B, T, E) in the dtype of x, and h after the piece, (B, E, N). Both are computed in float32 or better. In
        Triton gradients are taken once, and from outside of `torch.vmap`, not inside.

    Raises:
        ValueError: shapes that do not fit each other, a chunk size below 1, or what the kernel cannot take.
    """
    reference.check(x, delta, A, B, C, state, dims=3)
    chosen = choose(implementation, x.device)
    if chosen == "triton" and x.shape[1]:
        from zoology.kernels.selective_scan import triton

        if implementation is not None or triton.takes(x, delta, A):
            triton.limits(x, delta, A)
            given = (None if t is None else t.unsqueeze(0) for t in (x, delta, A, B, C, D, state))
            y, last, _ = triton.forward(*given, torch.is_grad_enabled())
            return y.squeeze(0), last.squeeze(0)
    return reference.selective_scan(x, delta, A, B, C, D, state=state, chunk_size=chunk_size)
