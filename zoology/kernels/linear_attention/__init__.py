"""Causal linear attention, with second-order Taylor features or features that the caller made.

Letters: B batch, T time, H heads, f feature_dim (width of q and k), F width of phi, dv width of v, C chunk.
"""

import functools

import torch
from torch import Tensor

from zoology.kernels.linear_attention import reference
from zoology.kernels.linear_attention.reference import (
    FeatureMap,
    LinearAttentionState,
    check,
    linear_attention_step,
    taylor_features,
)
from zoology.kernels.replicas import choose

__all__ = ["LinearAttentionState", "linear_attention", "linear_attention_step", "taylor_features"]

WHOLE = 512
"""Tokens of a sequence up to which the scores of all pairs cost less than chunks and their states do."""


@functools.wraps(reference.linear_attention, assigned=("__doc__",))
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
    check(q, k, v, feature_map, log_decay, dims=4)
    if choose(implementation, q.device) == "reference" or state is not None or output_state or q.shape[1] > WHOLE:
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
    if log_decay is not None:
        # One row for the whole batch where there is one decay for each head, and no copy.
        log_decay = log_decay.expand(1, q.shape[1], -1) if log_decay.dim() == 1 else log_decay
    taylor = feature_map == "taylor"
    # A program holds so many values of a token, and no more.
    parts = [triton.forward(q, k, x, log_decay, taylor, normalise, eps)[0] for x in v.split(triton.MAX_VALUE, -1)]
    o = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return o.to(dtype), None
