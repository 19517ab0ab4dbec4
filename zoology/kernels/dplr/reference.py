"""A recurrence with a diagonal-plus-low-rank transition, in PyTorch: exact, differentiable, chunked, on any device.

    S_t = (diag(w_t) + b_t a_t^T) S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t,    w_t = exp(log_decay_t)

Source: RWKV-7, arXiv:2503.14456 (the generalised delta rule, its S transposed); DeltaNet, arXiv:2406.06484 (chunks).

Letters: B batch, T time, H heads, dk width of q, k, a, b and the decay, dv width of v, C chunk.
"""

import torch
from torch import Tensor

from zoology.kernels.chunks import over_chunks

LARGEST_EXPONENT = 80.0
"""exp(80) = 5.5e34, which float32 and bfloat16 hold, with room for the products."""


def dplr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    *,
    floor: float,
    state: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence over a piece of a sequence.

    With G_i the sum of log_decay up to token i of a chunk, S_0 the state before it, and everything per channel,

        S_i = exp(G_i) (S_0 + sum_{j <= i} exp(-G_j) (b_j s_j^T + k_j v_j^T)),
        s_i = S_0^T a'_i + sum_{j < i} (a'_i . exp(-G_j) b_j) s_j + (a'_i . exp(-G_j) k_j) v_j

    where a'_i = exp(G_{i-1}) a_i. So all s of a chunk come from one triangular system, which is solved for all chunks
    at once; only S_0 goes from chunk to chunk. The decay is split into exp(G_i) and exp(-G_j), which stays in range as
    the decay has a floor.

    Args:
        q, k, a, b: (B, T, H, dk).
        v: (B, T, H, dv).
        log_decay: (B, T, H, dk), between `floor` and 0.
        floor: the least log_decay that can occur.
        state: (B, H, dk, dv), what came before, or None at the beginning.
        chunk_size: C, tokens in a chunk. Changes no number beyond rounding. None: what is fastest, 16 for heads of up
            to 16 on a CPU, else 64.

    Returns:
        o (B, T, H, dv) in the dtype of v, and the state after the piece in float32 or better.

    Raises:
        ValueError: shapes that do not fit each other, or a chunk over which exp(-G) may leave the range of float32.
    """
    _check(q, k, v, a, b, log_decay, state, dims=4)
    if chunk_size is None:
        chunk_size = 16 if q.shape[-1] <= 16 and not q.is_cuda else 64
    if chunk_size < 1 or chunk_size * -floor > LARGEST_EXPONENT:
        raise ValueError(
            f"chunk_size = {chunk_size}: must be at least 1, and times -floor = {-floor} at most {LARGEST_EXPONENT:g}"
        )
    wide = torch.promote_types(q.dtype, torch.float32)
    inputs = tuple(x.to(wide).transpose(1, 2) for x in (q, k, v, a, b, log_decay))  # (B, H, T, ...)
    o, s = over_chunks(_chunked, None if state is None else state.to(wide), inputs, chunk_size)
    return o.transpose(1, 2).to(v.dtype), s


def dplr_step(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `dplr`: q, k, a, b, log_decay (B, H, dk), v (B, H, dv), state -> o (B, H, dv), state.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(q, k, v, a, b, log_decay, state, dims=3)
    wide = torch.promote_types(q.dtype, torch.float32)
    columns = (x.to(wide).unsqueeze(-1) for x in (q, k, a, b, log_decay))
    query, key, reading, writing, decay = columns
    seen = (reading * state).sum(-2, keepdim=True)
    s = state * decay.exp() + writing * seen + key * v.to(wide).unsqueeze(-2)
    return (query * s).sum(-2).to(v.dtype), s


def _chunked(
    s: Tensor | None, q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor]:
    """N chunks of C tokens, (B, H, N, C, width) each. Returns o (B, H, T, dv) and the state after the last chunk."""
    wide, dv, chunks, size = v.dtype, v.shape[-1], q.shape[2], q.shape[3]
    total = log_decay.cumsum(-2)
    growth = (-total).exp()
    a, q = a * (total - log_decay).exp(), q * total.exp()
    b, k = b * growth, k * growth
    # One product for all four kinds of pairs. Autocast may make it in half precision; the system is solved in the
    # state's own.
    pairs = (torch.cat((a, q), dim=-2) @ torch.cat((b, k), dim=-2).transpose(-1, -2)).to(wide)
    # Cut by split and unbind, not by index: the backward pass of an index fills a whole tensor with zeros for each.
    (a_b, a_k), (q_b, q_k) = (half.split(size, dim=-1) for half in pairs.split(size, dim=-2))
    a_k, q_b, q_k = a_k.tril(-1), q_b.tril(), q_k.tril()
    first = 1 if s is None else 0  # the first chunk that has something before it
    right = (a_k @ v).to(wide)
    if chunks > first:  # how the s of a chunk depend on what was before it, solved for along with v
        right = torch.cat((right, a), dim=-1)
    solved = torch.linalg.solve_triangular(-a_b, right, upper=False, unitriangular=True)
    own, of_start = solved.split((dv, right.shape[-1] - dv), dim=-1)
    added, decay = k.transpose(-1, -2) @ v, total[..., -1, :].exp().unsqueeze(-1)
    starts, reads = [], []
    for read, dependence, b_t, new, fade in zip(
        *(x.unbind(2) for x in (own, of_start, b.transpose(-1, -2), added, decay)), strict=True
    ):
        if s is not None:
            starts.append(s)
            read = read + dependence @ s
        reads.append(read)
        new = new + b_t @ read
        s = fade * (new if s is None else s + new)
    reads_all = reads[0].unsqueeze(2) if chunks == 1 else torch.stack(reads, dim=2)
    o = q_b @ reads_all + q_k @ v
    if starts:
        seen = q[:, :, first:] @ torch.stack(starts, dim=2)
        o = o + seen if first == 0 else torch.cat((o[:, :, :1], o[:, :, 1:] + seen), dim=2)
    assert s is not None
    return o.flatten(2, 3), s


def _check(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None, dims: int
) -> None:
    alike = all(x.shape == q.shape for x in (k, a, b, log_decay))
    if q.dim() != dims or not alike or v.shape[:-1] != q.shape[:-1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, a, b, log_decay, v))
        axes = "B, T, H" if dims == 4 else "B, H"
        raise ValueError(
            f"q, k, a, b, log_decay, v have the shapes {shapes}: must be ({axes}, dk) five times, ({axes}, dv)"
        )
    if state is not None and state.shape != (q.shape[0], q.shape[-2], q.shape[-1], v.shape[-1]):
        raise ValueError(
            f"state has the shape {tuple(state.shape)}: "
            f"must be {(q.shape[0], q.shape[-2], q.shape[-1], v.shape[-1])}, (B, H, dk, dv)"
        )
