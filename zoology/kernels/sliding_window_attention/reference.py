"""Causal softmax attention over the last `window` tokens, the current one included, in PyTorch.

    o_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s over t - window < s <= t

Source: Longformer, arXiv:2004.05150, section 3.1; in Based, arXiv:2402.18668, section 4.2.

Letters: B batch, T time, H heads, d head width, w window, c tokens in the cache (at most w).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DENSE_TIME = 128
"""Up to this many tokens one masked (T, T) block beats blocks of w on a CPU, whose cost is in the copies."""


class SlidingWindowState(NamedTuple):
    """The last min(T, w) keys and values, oldest first: (B, c, H, d) each."""

    keys: Tensor
    values: Tensor


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
) -> tuple[Tensor, SlidingWindowState | None]:
    """The same function as `zoology.kernels.sliding_window_attention`.

    Time and memory grow as T w once T is beyond `dense_time` and 2 w; no longer pieces are one masked block, which
    changes no number beyond rounding.
    """
    check(q, k, v, window, dims=4)
    keys, values = with_cache(k, v, state)
    attend = _dense if q.shape[1] <= max(dense_time, 2 * window) else _blocks
    o = attend(q, keys, values, window, dropout)
    return o, state_after(keys, values, window) if output_state else None


def with_cache(k: Tensor, v: Tensor, state: SlidingWindowState | None) -> tuple[Tensor, Tensor]:
    """Keys and values of a piece after those of the state, if there is one: (B, c + T, H, d)."""
    if state is None:
        return k, v
    return torch.cat((state.keys, k), dim=1), torch.cat((state.values, v), dim=1)


def state_after(keys: Tensor, values: Tensor, window: int) -> SlidingWindowState:
    """The last w of the keys and values, copied: views would keep the rest alive."""
    start = max(keys.shape[1] - window, 0)
    return SlidingWindowState(keys[:, start:].clone(), values[:, start:].clone())


def sliding_window_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: SlidingWindowState, *, window: int
) -> tuple[Tensor, SlidingWindowState]:
    """One token of `sliding_window_attention`: q, k, v (B, H, d), state -> o (B, H, d), state.

    Raises:
        ValueError: as `sliding_window_attention`.
    """
    check(q, k, v, window, dims=3)
    keys, values = (
        torch.cat((kept[:, max(kept.shape[1] + 1 - window, 0) :], new.unsqueeze(1)), dim=1)
        for kept, new in zip(state, (k, v), strict=True)
    )
    o = _attend(q.unsqueeze(1), keys, values, None, 0.0).squeeze(1)
    return o, SlidingWindowState(keys, values)


def _dense(q: Tensor, keys: Tensor, values: Tensor, window: int, dropout: float) -> Tensor:
    """One block: q (B, T, H, d) against keys and values (B, c + T, H, d)."""
    time, cached = q.shape[1], keys.shape[1] - q.shape[1]
    query = torch.arange(time, device=q.device).unsqueeze(1) + cached
    key = torch.arange(cached + time, device=q.device)
    return _attend(q, keys, values, (key <= query) & (key > query - window), dropout)


def _blocks(q: Tensor, keys: Tensor, values: Tensor, window: int, dropout: float) -> Tensor:
    """Blocks of w queries, each against its own w tokens and the w before them.

    Keys are padded to w in front, where the cache is shorter, and with the queries to whole blocks at the end, where
    causality keeps the padding unseen.
    """
    time, heads = q.shape[1:3]
    cached = keys.shape[1] - time
    blocks = -(-time // window)
    end = blocks * window - time
    q = F.pad(q, (0, 0, 0, 0, 0, end)).unflatten(1, (blocks, window))
    k, v = (F.pad(x, (0, 0, 0, 0, window - cached, end)).unflatten(1, (blocks + 1, window)) for x in (keys, values))
    k, v = (torch.cat((x[:, :-1], x[:, 1:]), dim=2) for x in (k, v))  # (B, blocks, 2 w, H, d)
    query = torch.arange(window, device=q.device).unsqueeze(1) + window
    key = torch.arange(2 * window, device=q.device)
    visible = ((key <= query) & (key > query - window)).repeat(blocks, 1, 1)
    visible[0] &= key >= window - cached
    # Heads and blocks share an axis, so that there are four, which the fused kernels ask for.
    q, k, v = (x.transpose(2, 3).flatten(1, 2) for x in (q, k, v))
    o = _softmax_attention(q, k, v, visible.repeat_interleave(heads, dim=0), dropout)
    o = o.unflatten(1, (blocks, heads)).transpose(2, 3).flatten(1, 2)
    return o[:, :time]


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Softmax attention in the layout (B, T, H, d)."""
    q, keys, values = (x.transpose(1, 2) for x in (q, keys, values))
    return _softmax_attention(q, keys, values, mask, dropout).transpose(1, 2)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """(..., time, d). PyTorch's own where it can: on a GPU, under vmap, it refuses a mask."""
    if mask is not None and q.is_cuda:
        return _product_by_product(q, k, v, mask, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _product_by_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """The same, spelled out."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype)
    return F.dropout(weights, dropout) @ v


def check(q: Tensor, k: Tensor, v: Tensor, window: int, dims: int) -> None:
    """Refuse shapes that do not fit each other, for q of so many axes, and a window below 1.

    Raises:
        ValueError: naming them.
    """
    if window < 1:
        raise ValueError(f"window = {window}: must be at least 1")
    if q.dim() != dims or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        layout = "(B, T, H, d)" if dims == 4 else "(B, H, d)"
        raise ValueError(f"q, k, v have the shapes {shapes}: must be {layout}, all alike")
