"""One token of linear attention: which implementation runs."""

import torch
from torch import Tensor

from zoology.kernels.linear_attention import reference
from zoology.kernels.linear_attention.reference import FeatureMap, LinearAttentionState
from zoology.kernels.replicas import choose


def linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: LinearAttentionState,
    *,
    feature_map: FeatureMap = "identity",
    normalise: bool = True,
    log_decay: Tensor | None = None,
    eps: float = 1e-6,
    implementation: str | None = None,
) -> tuple[Tensor, LinearAttentionState]:
    """One token of `linear_attention`: q, k (B, H, f), v (B, H, dv), state -> o (B, H, dv), state.

    The state is new, in the dtypes of the one given (which may be narrow, for half the bytes); sums are taken in
    float32 or better before they are rounded to it. `log_decay` is (H,) or (B, H).

    `implementation` is "triton", "reference", or None: on a GPU Triton under `torch.no_grad`, as Triton has no
    gradient, for all dtypes but float64; else the reference.

    Raises:
        ValueError: as `linear_attention`, a state of another shape, or what the kernel cannot take.
    """
    reference.check_step(q, k, v, state, feature_map, normalise, log_decay)
    given = (q, k, v, state.kv, state.normaliser, log_decay)
    chosen = choose(implementation, q.device)
    if implementation is None and chosen == "triton":
        from zoology.kernels.linear_attention import triton_step

        # What needs a gradient cannot be read off the tensors: inside of `torch.vmap` none says so.
        if torch.is_grad_enabled() or not triton_step.takes(*given):
            chosen = "reference"
    if chosen == "reference":
        return reference.linear_attention_step(
            q, k, v, state, feature_map=feature_map, normalise=normalise, log_decay=log_decay, eps=eps
        )
    from zoology.kernels.linear_attention import triton_step

    kv, normaliser = state
    triton_step.limits(*given)
    decay = None if log_decay is None else log_decay.expand(q.shape[:2])
    o, kv, sums = triton_step.step(q, k, v, kv, normaliser if normalise else None, decay, feature_map == "taylor", eps)
    if not normalise:
        sums = normaliser if decay is None else (normaliser * decay.exp().unsqueeze(-1)).to(normaliser.dtype)
    return o, LinearAttentionState(kv, sums)
