"""Causal softmax attention over the whole past, or over the last `window` tokens of it, for short sequences.

    o_t = sum_s m_ts / (1 - p) softmax_s(q_t . k_s / sqrt(d)) v_s  over  t - w < s <= t

where m_ts is 0 with probability p (dropout) and 1 otherwise.

Source: Vaswani et al., arXiv:1706.03762; dropout on the weights, section 5.4 and its public code.

Letters: B batch, T queries, S keys (the last T of them are the queries' own), H heads, d head width, w window.
"""

import torch
from torch import Tensor

from zoology.kernels.attention import reference
from zoology.kernels.replicas import HAS_TRITON, choose

__all__ = ["attention", "self_attention", "takes"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    dropout: float = 0.0,
    implementation: str | None = None,
) -> Tensor:
    """A piece at the end of a sequence.

    Args:
        q: (B, T, H, d), the last T tokens.
        k, v: (B, S, H, d), S >= T.
        window: w, how many tokens are visible, the current one included; None for all.
        dropout: probability with which an attention weight is dropped. 0 outside of training. Which ones is drawn from
            torch's generator: in Triton a seed, so that the backward pass makes them again and nothing is kept.
        implementation: "triton", for d up to 128; "reference"; or None for the device's.

    Returns:
        o (B, T, H, d). In Triton gradients are taken once, not twice, and from outside of `torch.vmap`, not inside.

    Raises:
        ValueError: shapes that do not fit each other, a window below 1, or what the kernel cannot take.
    """
    reference.check(q, k, v, window)
    if choose(implementation, q.device) == "reference":
        return reference.attention(q, k, v, window=window, dropout=dropout)
    from zoology.kernels.attention import checks, triton

    q, k, v = (_rounded(x) for x in (q, k, v))
    checks.limits(q, k, v)
    o, _ = triton.forward(q, k, v, _seed(dropout, q.device), k.shape[1] if window is None else window, dropout)
    return o


def self_attention(
    qkv: Tensor, *, window: int | None = None, dropout: float = 0.0, implementation: str | None = None
) -> Tensor:
    """A whole sequence, its queries, keys and values in one tensor (B, T, 3, H, d), as one projection makes them.

    The gradient is one tensor, too. All else as in `attention`.
    """
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv has the shape {tuple(qkv.shape)}: must be (B, T, 3, H, d)")
    q, k, v = qkv.unbind(2)
    if choose(implementation, qkv.device) == "reference":
        return attention(q, k, v, window=window, dropout=dropout, implementation="reference")
    from zoology.kernels.attention import checks, triton

    reference.check(q, k, v, window)
    qkv = _rounded(qkv)
    checks.limits(*qkv.unbind(2))
    o, _ = triton.self_forward(qkv, _seed(dropout, qkv.device), q.shape[1] if window is None else window, dropout)
    return o


def takes(device: torch.device, dtype: torch.dtype, d: int) -> bool:
    """Whether the Triton kernel would run for these by itself, and can."""
    if device.type != "cuda" or not HAS_TRITON:
        return False
    from zoology.kernels.attention import checks

    return d <= checks.MAX_WIDTH and dtype in checks.DTYPES


def _rounded(x: Tensor) -> Tensor:
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _seed(dropout: float, device: torch.device) -> Tensor | None:
    return torch.randint(2**31 - 1, (1,), device=device) if dropout else None
