"""RWKV-4's WKV: a weighted mean of all values so far, for every channel on its own.

    y_t = (sum_{i < t} e^(k_i - (t - 1 - i) w) v_i + e^(u + k_t) v_t) / (the same without v),    for every channel

Source: RWKV, arXiv:2305.13048, equation 16; the running maximum: its appendix on numerical stability.

Letters: B batch, T time, D channels, w rate of decay, u bonus of the current token.
"""

import torch
from torch import Tensor

from zoology.kernels.replicas import choose
from zoology.kernels.wkv import reference
from zoology.kernels.wkv.reference import WKVState, empty_state, wkv_step

__all__ = ["WKVState", "empty_state", "wkv", "wkv_step"]


def wkv(
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: WKVState | None = None,
    *,
    implementation: str | None = None,
) -> tuple[Tensor, WKVState]:
    """WKV over a piece of a sequence, in time linear in its length.

    Args:
        k, v: (B, T, D).
        w: (D,), at least 0. A sum shrinks by e^-w at each token.
        u: (D,).
        state: what came before, or None at the beginning.
        implementation: "triton", "reference", or None: on a GPU Triton, but for float64.

    Returns:
        y (B, T, D) in the dtype of v, and the state after the piece. Both are computed in float32 or better. In Triton
        gradients are taken once, and from outside of `torch.vmap`, not inside.

    Raises:
        ValueError: shapes that do not fit each other, or that the kernel cannot take.
    """
    reference.check(k, v, w, u, dims=3)
    if choose(implementation, k.device) == "triton" and k.shape[1]:
        from zoology.kernels.wkv import triton

        if implementation is not None or triton.takes(k, v, w):
            triton.limits(k, v, w)
            before = (None, None, None) if state is None else state
            given = (None if t is None else t.unsqueeze(0) for t in (k, v, w, u, *before))
            y, *after, _ = triton.forward(*given, torch.is_grad_enabled())
            return y.squeeze(0), WKVState(*(t.squeeze(0) for t in after))
    return reference.wkv(k, v, w, u, state)
