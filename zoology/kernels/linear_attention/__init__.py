"""Causal linear attention, with second-order Taylor features or features that the caller made.

    o_t = sum_{s <= t} d_ts w(q_t, k_s) v_s / (sum_{s <= t} d_ts w(q_t, k_s) + eps),    w(q, k) = phi(q) . phi(k)

where d_ts = 1, or exp(g_{s+1} + ... + g_t) with a decay, whose logarithm is g.

Sources: Katharopoulos et al., arXiv:2006.16236 (the recurrence); Based, arXiv:2402.18668 (Taylor features); GLA,
arXiv:2312.06635 (chunks); RetNet, arXiv:2307.08621 (a decay for each head); Mamba-2, arXiv:2405.21060 (and each token).

Letters: B batch, T time, H heads, f feature_dim (width of q and k), F width of phi, dv width of v, C chunk.
"""

import torch
from torch import Tensor

from zoology.kernels.linear_attention import reference
from zoology.kernels.linear_attention.reference import (
    FeatureMap,
    LinearAttentionState,
    check,
    taylor_features,
)
from zoology.kernels.linear_attention.step import linear_attention_step
from zoology.kernels.replicas import choose

__all__ = ["LinearAttentionState", "linear_attention", "linear_attention_step", "taylor_features"]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: FeatureMap = "identity",
    normalise: bool = True,
    log_decay: Tensor | None = None,
    state: LinearAttentionState | None = None,
    chunk_size: int | None = None,
    eps: float = 1e-6,
    output_state: bool = False,
    implementation: str | None = None,
) -> tuple[Tensor, LinearAttentionState | None]:
    """Causal linear attention over a piece of a sequence.

    Args:
        q, k: (B, T, H, f).
        v: (B, T, H, dv).
        feature_map: "taylor" for w = 1 + s + s^2 / 2 with s = q . k / sqrt(f); "identity" for w = q . k, where q and k
            already are features (which should be positive if the output is normalised).
        normalise: divide by the sum of the weights.
        log_decay: g, the logarithm of what the state is multiplied by before a token is added: (H,), or (B, T, H) where
            each token has its own. Finite and at most 0. None for no decay.
        state: what came before, or None at the beginning.
        chunk_size: C, tokens in a chunk. Changes no number beyond rounding. None for what is fastest on the device.
        eps: added to the sum of the weights.
        output_state: whether the state after the piece is returned; None otherwise.
        implementation: "triton", "reference", or None for the device's.

    Returns:
        o (B, T, H, dv) in the dtype of v, and the state or None. Sums are taken in float32 or better. In Triton
        gradients are taken once, not twice, and from outside of `torch.vmap`, not inside.

    Raises:
        ValueError: shapes that do not fit each other, an unknown feature map, a chunk size below 1, or more than the
            kernel can take.
    """
    check(q, k, v, feature_map, log_decay, dims=4)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size}: must be at least 1")
    if choose(implementation, q.device) == "reference":
        return reference.linear_attention(
            q,
            k,
            v,
            feature_map=feature_map,
            normalise=normalise,
            log_decay=log_decay,
            state=state,
            chunk_size=chunk_size,
            eps=eps,
            output_state=output_state,
        )
    from zoology.kernels.linear_attention import triton

    dtype = v.dtype
    if torch.is_autocast_enabled(q.device.type):
        inside = torch.get_autocast_dtype(q.device.type)
    else:
        inside = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    q, k, v = q.to(inside), k.to(inside), v.to(inside)
    triton.limits(q, v)
    if log_decay is not None and log_decay.dim() == 1:
        log_decay = log_decay.expand(1, q.shape[1], -1)  # one row for the whole batch, and no copy
    taylor, carried = feature_map == "taylor", state is not None or output_state
    chunk = triton.chunk_of(q.shape[1], q.shape[-1], v.shape[-1], taylor, carried, chunk_size)
    save = torch.is_grad_enabled() and triton.saves(q.shape[-1], min(v.shape[-1], triton.MAX_VALUE), taylor, chunk)
    options = (taylor, normalise, eps, chunk, output_state, save)
    # A program holds so many values of a token, and no more.
    values = v.split(triton.MAX_VALUE, -1)
    sums, z = (None, None) if state is None else state
    before = [None] * len(values) if sums is None else sums.split(triton.MAX_VALUE, -1)
    parts = [triton.forward(q, k, x, log_decay, kv, z, *options) for x, kv in zip(values, before, strict=True)]
    o, kv = (x[0] if len(x) == 1 else torch.cat(x, -1) for x in list(zip(*parts, strict=True))[:4:2])
    return o.to(dtype), LinearAttentionState(kv, parts[0][3]) if output_state else None
