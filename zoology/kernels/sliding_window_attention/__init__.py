"""Causal softmax attention over the last `window` tokens, the current one included.

    o_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s over t - window < s <= t

Source: Longformer, arXiv:2004.05150, section 3.1; in Based, arXiv:2402.18668, section 4.2.

Letters: B batch, T time, H heads, d head width, w window, c tokens in the cache (at most w).
"""

import torch
from torch import Tensor

from zoology.kernels.replicas import choose
from zoology.kernels.sliding_window_attention import reference
from zoology.kernels.sliding_window_attention.reference import (
    DENSE_TIME,
    SlidingWindowState,
    sliding_window_attention_step,
)

__all__ = ["SlidingWindowState", "sliding_window_attention", "sliding_window_attention_step"]


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    state: SlidingWindowState | None = None,
    dropout: float = 0.0,
    dense_time: int = DENSE_TIME,
    output_state: bool = False,
    implementation: str | None = None,
) -> tuple[Tensor, SlidingWindowState | None]:
    """A piece of a sequence. Time and memory grow as T w, in the reference once T is beyond `dense_time` and 2 w.

    Args:
        q, k, v: (B, T, H, d). Under autocast they are rounded to its dtype.
        window: w, how many tokens are visible, the current one included.
        state: the tokens before the piece, or None at the beginning.
        dropout: probability with which an attention weight is dropped. 0 outside of training.
        dense_time: pieces no longer than this are one masked block in the reference. Changes no number beyond rounding.
        output_state: whether the state after the piece is returned; None otherwise.
        implementation: "triton", for d up to 64 and no dropout; "reference"; or None, which is Triton on a GPU where
            it takes the call in 16 bits, as in a sweep, and the reference elsewhere.

    Returns:
        o (B, T, H, d), and the state or None. In Triton gradients are taken once, not twice, and from outside of
        `torch.vmap`, not inside.

    Raises:
        ValueError: shapes that do not fit each other, a window below 1, or what the kernel cannot take.
    """
    reference.check(q, k, v, window, dims=4)
    keys, values = reference.with_cache(k, v, state)
    rounded = (q, keys, values)
    if torch.is_autocast_enabled(q.device.type):
        rounded = tuple(x.to(torch.get_autocast_dtype(q.device.type)) for x in rounded)
    if _implementation(implementation, *rounded, dropout=dropout) == "reference":
        options = {"dropout": dropout, "dense_time": dense_time, "output_state": output_state}
        return reference.sliding_window_attention(q, k, v, window=window, state=state, **options)
    from zoology.kernels.sliding_window_attention import triton

    triton.limits(*rounded, dropout)
    o, _ = triton.forward(*rounded, window)
    return o, reference.state_after(keys, values, window) if output_state else None


def _implementation(name: str | None, *tensors: Tensor, dropout: float) -> str:
    """As named; without a name, the kernel where it was measured to be the faster: in 16 bits, on a GPU."""
    chosen = choose(name, tensors[0].device)
    if name is None and chosen == "triton":
        from zoology.kernels.sliding_window_attention import triton

        if dropout or tensors[0].dtype == torch.float32 or not triton.takes(*tensors):
            return "reference"
    return chosen
