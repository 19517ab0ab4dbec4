"""The delta rule in PyTorch, plain and gated: exact, differentiable, chunked, on any device.

    S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    o_t = S_t^T q_t

What the memory S holds under the key k_t is read, and moved by beta_t towards v_t. alpha_t = exp(log_decay_t) forgets;
it is 1 in the plain rule.

Sources: DeltaNet, arXiv:2406.06484 (chunks, the WY form); Gated DeltaNet, arXiv:2412.06464 (alpha). Their S is the
transpose of this one.

Letters: B batch, T time, H heads, dk width of q and k, dv width of v, C chunk.
"""

import torch
from torch import Tensor

from zoology.kernels.chunks import over_chunks


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    state: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The delta rule over a piece of a sequence.

    With G_i the sum of log_decay up to token i of a chunk, and S_0 the state before the chunk,

        S_i = exp(G_i) S_0 + sum_{j <= i} exp(G_i - G_j) k_j u_j^T,
        u_i = beta_i (v_i - exp(G_i) S_0^T k_i - sum_{j < i} exp(G_i - G_j) (k_i . k_j) u_j),

    so that all u of a chunk come from one triangular system (the WY or UT form of the papers), which is solved for all
    chunks at once, for v and for k separately; only S_0 goes from chunk to chunk. No exponent is above 0.

    Args:
        q, k: (B, T, H, dk). Keys of at most unit length keep the state bounded where beta <= 2.
        v: (B, T, H, dv).
        beta: (B, T, H), the share of the error that is corrected.
        log_decay: (B, T, H), at most 0; None for no decay.
        state: (B, H, dk, dv), what came before, or None at the beginning.
        chunk_size: C, tokens in a chunk. Changes no number beyond rounding. None: what is fastest, 16 for heads of up
            to 16 on a CPU, else 64.

    Returns:
        o (B, T, H, dv) in the dtype of v, and the state after the piece in float32 or better.

    Raises:
        ValueError: shapes that do not fit each other, a chunk size below 1.
    """
    _check(q, k, v, beta, log_decay, state, dims=4)
    if chunk_size is None:
        chunk_size = 16 if q.shape[-1] <= 16 and not q.is_cuda else 64
    if chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size}: must be at least 1")
    wide = torch.promote_types(q.dtype, torch.float32)
    given = (q, k, v, beta) if log_decay is None else (q, k, v, beta, log_decay)
    inputs = tuple(x.to(wide).transpose(1, 2) for x in given)  # (B, H, T, ...)
    o, s = over_chunks(_chunked, None if state is None else state.to(wide), inputs, chunk_size)
    return o.transpose(1, 2).to(v.dtype), s


def delta_rule_step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `delta_rule`: q, k (B, H, dk), v (B, H, dv), beta, log_decay (B, H), state -> o (B, H, dv), state.

    Raises:
        ValueError: as `delta_rule`.
    """
    _check(q, k, v, beta, log_decay, state, dims=3)
    wide = torch.promote_types(q.dtype, torch.float32)
    key, s = k.to(wide).unsqueeze(-1), state.to(wide)
    if log_decay is not None:
        s = s * log_decay.to(wide).exp()[..., None, None]
    error = v.to(wide) - (key * s).sum(-2)
    s = s + key * (beta.to(wide).unsqueeze(-1) * error).unsqueeze(-2)
    return (q.to(wide).unsqueeze(-1) * s).sum(-2).to(v.dtype), s


def _chunked(
    s: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """N chunks of C tokens: q, k (B, H, N, C, dk), v (B, H, N, C, dv), beta, log_decay (B, H, N, C).

    Returns o (B, H, T, dv) and the state after the last chunk.
    """
    wide, dv, chunks = v.dtype, v.shape[-1], q.shape[2]
    k_t = k.transpose(-1, -2)
    b = beta.unsqueeze(-1)
    if log_decay is None:
        from_start = to_end = None
        within, past, before = q @ k_t, b * (k @ k_t), k
    else:
        ratio = _decay_between(log_decay)
        from_start, to_end = log_decay.cumsum(-1).exp().unsqueeze(-1), ratio[..., -1, :].unsqueeze(-1)
        within, past, before = (q @ k_t) * ratio, b * (k @ k_t) * ratio, k * from_start
    within = within.tril()
    first = 1 if s is None else 0
    # Where something is before a chunk, how its u depend on that is solved for along with v.
    right = torch.cat((b * v, b * before), dim=-1) if chunks > first else b * v
    # Autocast may have made the products in half precision; the system is solved in the state's own.
    solved = torch.linalg.solve_triangular(past.to(wide), right, upper=False, unitriangular=True)
    # Cut by split and unbind, not by index: the backward pass of an index fills a whole tensor with zeros for each.
    u, w = solved.split((dv, right.shape[-1] - dv), dim=-1)
    ending = k_t if to_end is None else (k * to_end).transpose(-1, -2)
    fades = [None] * chunks if from_start is None else from_start[..., -1:, :].unbind(2)
    starts, values = [], []
    for u_n, w_n, ending_n, fade in zip(u.unbind(2), w.unbind(2), ending.unbind(2), fades, strict=True):
        if s is not None:
            starts.append(s)
            u_n = u_n - w_n @ s
        values.append(u_n)
        added = ending_n @ u_n
        if s is not None and fade is not None:
            s = s * fade
        s = added.to(wide) if s is None else s + added
    u = values[0].unsqueeze(2) if chunks == 1 else torch.stack(values, dim=2)
    o = within @ u
    if starts:
        reading = q[:, :, first:] if from_start is None else q[:, :, first:] * from_start[:, :, first:]
        seen = reading @ torch.stack(starts, dim=2)
        o = o + seen if first == 0 else torch.cat((o[:, :, :1], o[:, :, 1:] + seen), dim=2)
    assert s is not None
    return o.flatten(2, 3), s


def _decay_between(log_decay: Tensor) -> Tensor:
    """exp of the sum of log_decay over j + 1, ..., i where j <= i, and 0 elsewhere: (..., C) -> (..., C, C).

    Each sum is made on its own: a difference of two sums from the beginning loses the digits of a slow decay that
    follows a strong one. What is above the diagonal is masked before the exponential, as after it the backward pass
    would have to multiply by 0.
    """
    size = log_decay.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).triu(1)
    sums = log_decay.unsqueeze(-1).expand(*log_decay.shape, size).tril(-1).cumsum(-2)
    return sums.masked_fill(later, -torch.inf).exp()


def _check(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, dims: int
) -> None:
    gates = (beta,) if log_decay is None else (beta, log_decay)
    fits = q.dim() == dims and q.shape == k.shape and all(x.shape == q.shape[:-1] for x in (v[..., 0], *gates))
    if not fits:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v, *gates))
        axes = "B, T, H" if dims == 4 else "B, H"
        raise ValueError(
            f"q, k, v, beta, log_decay have the shapes {shapes}: "
            f"must be ({axes}, dk), ({axes}, dk), ({axes}, dv), ({axes}), ({axes}) or None"
        )
    if state is not None and state.shape != (q.shape[0], q.shape[-2], q.shape[-1], v.shape[-1]):
        raise ValueError(
            f"state has the shape {tuple(state.shape)}: "
            f"must be {(q.shape[0], q.shape[-2], q.shape[-1], v.shape[-1])}, (B, H, dk, dv)"
        )
