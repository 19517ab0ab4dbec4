"""Gated linear attention in PyTorch: exact, differentiable, chunked, on any device.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t

Source: GLA, arXiv:2312.06635, sections 4.1 to 4.3.

Letters: B batch, T time, H heads, K width of q and k, V width of v, S the state, g log_decay (the paper's log alpha),
C chunk, N chunks.

The paper's chunked form scales q by exp(G) and k by exp(-G), with G the sum of g, which overflows where gates close,
and so falls back on exact pairs in blocks of 16. Here blocks are joined two by two. What the second reads of the first
goes through the border between them, (q_t decayed since the border) . (k_s decayed until the border), a matrix product
of numbers that decays only made smaller; and the joined block's queries and keys are the same, decayed on to its ends.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoology.kernels.decay import decayed_sums


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    state: Tensor | None = None,
    chunk_size: int = 16,
    output_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """A piece of a sequence.

    Args:
        q, k: (B, T, H, K). Nothing is scaled here.
        v: (B, T, H, V).
        log_decay: (B, T, H, K), finite and at most 0.
        state: S before the piece, (B, H, K, V), or None at the beginning.
        chunk_size: C, tokens in a chunk, a power of two. Changes no number beyond rounding.
        output_state: whether the state after the piece is returned; None otherwise.

    Returns:
        o (B, T, H, V) in the dtype of v, and S (B, H, K, V) in float32 or better, or None.

    Raises:
        ValueError: shapes that do not fit each other, or a chunk size that is no power of two.
    """
    _check(q, k, v, log_decay, dims=4)
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size = {chunk_size}: must be a power of two")
    batch, time, heads, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    if time == 0:
        after = q.new_zeros(batch, heads, q.shape[-1], v.shape[-1], dtype=wide) if state is None else state
        return v, after if output_state else None
    size = min(chunk_size, 1 << (time - 1).bit_length())
    # Tokens that add nothing and forget nothing fill the last chunk: the state after them is that before them.
    qs, ks, vs, gs = (
        F.pad(x.to(wide).transpose(1, 2), (0, 0, 0, -time % size)).flatten(0, 1).unflatten(1, (-1, size))
        for x in (q, k, v, log_decay)
    )  # (G, N, C, K or V), G = B H
    scores, rows, columns = _join(qs, ks, gs.exp())
    o = scores @ vs
    chunks, first = qs.shape[1], 0 if state is not None else 1  # the first chunk that has something before it
    after = None
    if chunks > first or output_state:
        added, ends = (columns.transpose(-1, -2) @ vs).to(wide), gs.sum(2)
        if state is not None:
            before = state.to(wide).flatten(0, 1).unsqueeze(1)
            added, ends = torch.cat((before, added), dim=1), F.pad(ends, (0, 0, 1, 0))
        sums = decayed_sums(added.transpose(1, 2), ends.transpose(1, 2)).transpose(1, 2)
        if chunks > first:
            o[:, first:] += rows[:, first:] @ sums[:, : chunks - first]
        after = sums[:, -1].unflatten(0, (batch, heads)) if output_state else None
    o = o.flatten(1, 2)[:, :time].unflatten(0, (batch, heads)).transpose(1, 2)
    return o.to(v.dtype), after


def gated_linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `gated_linear_attention`: q, k, log_decay (B, H, K), v (B, H, V), state -> o (B, H, V), state.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(q, k, v, log_decay, dims=3)
    wide = torch.promote_types(q.dtype, torch.float32)
    state = state * log_decay.to(wide).exp().unsqueeze(-1) + k.to(wide).unsqueeze(-1) * v.to(wide).unsqueeze(-2)
    return (q.to(wide).unsqueeze(-2) @ state).squeeze(-2).to(v.dtype), state


def _join(q: Tensor, k: Tensor, decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Chunks of C tokens, q, k, decay (G, N, C, K), from blocks of one token, joined two by two until one is left.

    Returns:
        scores (G, N, C, C), how much of v_s o_t holds; q decayed since the chunk's beginning, and k until its end.
    """
    rows, columns, decay = ((x.unsqueeze(3)) for x in (q * decay, k, decay))  # (G, N, blocks, tokens, K)
    scores = (q * k).sum(-1)[..., None, None]
    while rows.shape[2] > 1:
        size = rows.shape[3]
        (row_1, row_2), (column_1, column_2), (decay_1, decay_2), (score_1, score_2) = (
            x.unflatten(2, (-1, 2)).unbind(3) for x in (rows, columns, decay, scores)
        )
        # A row times a column is dear as a matrix product.
        across = row_2 @ column_1.transpose(-1, -2) if size > 1 else (row_2 * column_1).sum(-1, keepdim=True)
        scores = torch.cat((F.pad(score_1, (0, size)), torch.cat((across, score_2), dim=-1)), dim=-2)
        rows = torch.cat((row_1, row_2 * decay_1), dim=3)
        columns = torch.cat((column_1 * decay_2, column_2), dim=3)
        decay = decay_1 * decay_2
    return scores.squeeze(2), rows.squeeze(2), columns.squeeze(2)


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, dims: int) -> None:
    if q.dim() != dims or q.shape != k.shape or q.shape != log_decay.shape or q.shape[:-1] != v.shape[:-1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v, log_decay))
        before = "B, T, H" if dims == 4 else "B, H"
        layout = f"({before}, K), ({before}, K), ({before}, V), ({before}, K)"
        raise ValueError(f"q, k, v, log_decay have the shapes {shapes}: must be {layout}")
