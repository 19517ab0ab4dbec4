"""Causal linear attention in PyTorch: exact, differentiable, chunked, on any device.

    o_t = sum_{s <= t} d_ts w(q_t, k_s) v_s / (sum_{s <= t} d_ts w(q_t, k_s) + eps),    w(q, k) = phi(q) . phi(k)

where d_ts = 1, or exp(g_{s+1} + ... + g_t) with a decay, whose logarithm is g.

Sources: Katharopoulos et al., arXiv:2006.16236 (the recurrence); Based, arXiv:2402.18668 (Taylor features); GLA,
arXiv:2312.06635 (chunks); RetNet, arXiv:2307.08621 (a decay for each head); Mamba-2, arXiv:2405.21060 (and each token).

Letters: B batch, T time, H heads, f feature_dim (width of q and k), F width of phi, dv width of v, C chunk, N chunks.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoology.kernels.decay import cumulative, decayed_sums, pair_decays

FeatureMap = Literal["identity", "taylor"]

CHUNK, DECAY_CHUNK = 256, 32
"""Tokens in a chunk, without and with a decay, that are fastest on a CPU."""


class LinearAttentionState(NamedTuple):
    """What linear attention keeps: H (dv + 1) F elements for each sequence, whatever its length.

    kv: (B, H, F, dv), the (decayed) sum of phi(k) v^T.
    normaliser: (B, H, F), that of phi(k); (B, H, 0) where the output is not normalised.

    Both are sums over the whole past, so they are held in float32, or in float64 where the inputs are.
    """

    kv: Tensor
    normaliser: Tensor

    @staticmethod
    def of_sum(kv: Tensor) -> "LinearAttentionState":
        """The state of an output that is not normalised."""
        return LinearAttentionState(kv, kv[..., :0, 0])


def taylor_features(x: Tensor) -> Tensor:
    """Second-order Taylor features, packed: (..., f) -> (..., (f + 1)(f + 2) / 2).

    phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(f), the beginning of exp(s). Each side carries f^(-1/4) of
    the scale. The f^2 products x_i x_j are symmetric, so each pair i < j is held once, times sqrt(2).
    Source: Based, arXiv:2402.18668, section 4.1.

    The pairs come as x times itself rolled by 0, 1, ..., f / 2: no gather, whose backward would be a scatter.
    """
    f = x.shape[-1]
    x = x * f**-0.25
    twice = torch.cat((x, x), dim=-1)
    parts = [torch.ones_like(x[..., :1]), x, x * x * 0.5**0.5]
    for shift in range(1, f // 2 + 1):
        pairs = f if 2 * shift < f else shift  # half a turn meets every pair twice
        parts.append(x[..., :pairs] * twice[..., shift : shift + pairs])
    return torch.cat(parts, dim=-1)


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
) -> tuple[Tensor, LinearAttentionState | None]:
    """The same function as `zoology.kernels.linear_attention`.

    Inside a chunk the weights come from the scores, without features; the chunks before it come from the state. So a
    sequence within one chunk, from its beginning, makes features only if its state is asked for. On a CPU one chunk is
    faster up to about 256 tokens; with a decay, which is a matrix of its own, up to about 32.
    """
    check(q, k, v, feature_map, log_decay, dims=4)
    if chunk_size is None:
        chunk_size = CHUNK if log_decay is None else DECAY_CHUNK
    if chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size}: must be at least 1")
    batch, time, heads, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    # Autocast rounds the factors of every product: widening them first would only be two more passes over each.
    inside = q.dtype if torch.is_autocast_enabled(q.device.type) else wide
    qs, ks, vs = (x.to(inside).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    carry = None if state is None else tuple(x.to(wide).flatten(0, 1) for x in state)
    whole = time - time % chunk_size
    pieces = [(start, stop) for start, stop in ((0, whole), (whole, time)) if stop > start]
    outputs = []
    for start, stop in pieces:
        size = min(chunk_size, stop - start)
        chunks = (x[:, start:stop].unflatten(1, (-1, size)) for x in (qs, ks, vs))
        decay = None if log_decay is None else _chunk_decay(log_decay, start, stop, size)
        keep = output_state or stop < time
        numerator, denominator, carry = _chunked(*chunks, decay, carry, feature_map, normalise, keep)
        o = numerator if denominator is None else numerator / (denominator + eps)
        outputs.append(o.flatten(1, 2))
    if not outputs:  # no token: nothing comes out, and the state stays
        outputs, carry = [vs], carry if carry is not None else _empty(ks, vs, feature_map, normalise)
    o = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    o = o.unflatten(0, (batch, heads)).transpose(1, 2).to(v.dtype)
    if not output_state:
        return o, None
    assert carry is not None
    return o, LinearAttentionState(*(x.unflatten(0, (batch, heads)) for x in carry))


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
) -> tuple[Tensor, LinearAttentionState]:
    """The same function as `zoology.kernels.linear_attention.linear_attention_step`."""
    check_step(q, k, v, state, feature_map, normalise, log_decay)
    wide = torch.promote_types(q.dtype, torch.float32)
    features = _features(feature_map)
    phi_q, phi_k, value = features(q.to(wide)), features(k.to(wide)), v.to(wide)
    kv, normaliser = state
    if log_decay is not None:
        decay = log_decay.to(wide).exp().unsqueeze(-1)
        kv, normaliser = kv * decay.unsqueeze(-1), normaliser * decay
    kv = kv + phi_k.unsqueeze(-1) * value.unsqueeze(-2)
    o = (phi_q.unsqueeze(-2) @ kv).squeeze(-2)
    if normalise:
        normaliser = normaliser + phi_k
        o = o / ((phi_q * normaliser).sum(-1, keepdim=True) + eps)
    return o.to(v.dtype), LinearAttentionState(
        *(new.to(old.dtype) for new, old in zip((kv, normaliser), state, strict=True))
    )


def _chunk_decay(log_decay: Tensor, start: int, stop: int, size: int) -> Tensor:
    """The decay from the beginning of each chunk to each of its tokens, as a logarithm in float64.

    (H, 1, C), the same for every row of the batch and every chunk, or (B H, N, C).
    """
    if log_decay.dim() == 1:
        tokens = torch.arange(1, size + 1, device=log_decay.device, dtype=torch.float64)
        return (log_decay.double().unsqueeze(1) * tokens).unsqueeze(1)
    return cumulative(log_decay[:, start:stop].transpose(1, 2).flatten(0, 1).unflatten(1, (-1, size)))


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    carry: tuple[Tensor, ...] | None,
    feature_map: FeatureMap,
    normalise: bool,
    keep: bool,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...] | None]:
    """Chunks of equal size: q, k (G, N, C, f), v (G, N, C, dv), G = B H; decay as `_chunk_decay` makes it.

    Returns the numerator (G, N, C, dv), the denominator (G, N, C, 1) or None, and the sums after the last chunk if
    `keep`. All chunks at once: the sums before each are a cumulative sum over N, not a loop.
    """
    weights = _causal_weights(q, k, feature_map, decay)
    numerator = weights @ v
    denominator = (
        weights.sum(-1, keepdim=True, dtype=torch.promote_types(weights.dtype, torch.float32)) if normalise else None
    )
    chunks, first = q.shape[1], 0 if carry is not None else 1  # the first chunk that has something before it
    if chunks <= first and not keep:
        return numerator, denominator, None
    added = slice(None) if keep else slice(-1)
    features = _features(feature_map)
    phi_k, ends = features(k[:, added]), None
    if decay is not None:
        decay = decay.expand(-1, chunks, -1)
        ends = decay[:, added, -1]
        phi_k = _times(phi_k, (ends.unsqueeze(-1) - decay[:, added]).exp().unsqueeze(-1))
    kv = (phi_k.transpose(-1, -2) @ v[:, added]).to(q.dtype)  # wide again, where autocast has made it narrow
    sums = [kv, phi_k.sum(-2) if normalise else phi_k[:, :, 0, :0]]
    if carry is not None:
        sums = [torch.cat((before.unsqueeze(1), x), dim=1) for before, x in zip(carry, sums, strict=True)]
        ends = ends if ends is None else F.pad(ends, (1, 0))
    kv, normaliser = (x.cumsum(1) if ends is None else _decayed_sums(x, ends) for x in sums)
    if chunks > first:
        phi_q = features(q[:, first:])
        if decay is not None:
            phi_q = _times(phi_q, decay[:, first:].exp().unsqueeze(-1))
        numerator[:, first:] += phi_q @ kv[:, : chunks - first]
        if denominator is not None:
            denominator[:, first:] += phi_q @ normaliser[:, : chunks - first].unsqueeze(-1)
    return numerator, denominator, (kv[:, -1], normaliser[:, -1]) if keep else None


def _causal_weights(q: Tensor, k: Tensor, feature_map: FeatureMap, decay: Tensor | None) -> Tensor:
    """d_ts w(q_t, k_s) where s <= t and 0 elsewhere: (..., C, f) twice -> (..., C, C)."""
    if feature_map == "identity":
        weights = q @ k.transpose(-1, -2)
    else:
        # 1 + s + s^2 / 2 = u^2 + 1/2 with u = (1 + s) / sqrt(2), and baddbmm adds the constant while it multiplies: the
        # fewest passes over the (C, C) scores, forward and backward, which are what the time goes into.
        scale = (2 * q.shape[-1]) ** -0.5
        constant = q.new_full((1, 1, 1), 0.5**0.5)
        u = torch.baddbmm(constant, (q * scale).flatten(0, 1), k.flatten(0, 1).transpose(-1, -2))
        weights = (u * u + 0.5).unflatten(0, q.shape[:2])
    if decay is None:
        return weights.tril()
    return _times(weights, pair_decays(decay, q.dtype))


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """x (G, ...) times a factor (P, ...), where P divides G: P is H, the same for each row of the batch, or G."""
    return (x.unflatten(0, _rows(x, factor)) * factor.to(x.dtype)).flatten(0, 1)


def _decayed_sums(x: Tensor, ends: Tensor) -> Tensor:
    """x (G, N, ...), each decayed by the chunks after it, as logarithms `ends` (P, N), and summed over N."""
    flat = x.flatten(2).unflatten(0, _rows(x, ends))
    return decayed_sums(flat, ends).flatten(0, 1).view(x.shape)


def _rows(x: Tensor, shared: Tensor) -> tuple[int, int]:
    """G as (G / P, P); an empty batch has no -1."""
    return x.shape[0] // max(shared.shape[0], 1), shared.shape[0]


def _features(feature_map: FeatureMap) -> Callable[[Tensor], Tensor]:
    return taylor_features if feature_map == "taylor" else lambda x: x


def _empty(k: Tensor, v: Tensor, feature_map: FeatureMap, normalise: bool) -> tuple[Tensor, Tensor]:
    """Sums over no token, for k (G, T, f) and v (G, T, dv)."""
    f = k.shape[-1]
    width = (f + 1) * (f + 2) // 2 if feature_map == "taylor" else f
    return k.new_zeros(k.shape[0], width, v.shape[-1]), k.new_zeros(k.shape[0], width if normalise else 0)


def check_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: LinearAttentionState,
    feature_map: str,
    normalise: bool,
    log_decay: Tensor | None,
) -> None:
    """Refuse shapes of `linear_attention_step` that do not fit each other.

    Raises:
        ValueError: naming them.
    """
    check(q, k, v, feature_map, log_decay, dims=3)
    f = q.shape[-1]
    sums = (*q.shape[:2], (f + 1) * (f + 2) // 2 if feature_map == "taylor" else f)
    kv = (*sums, v.shape[-1])
    if state.kv.shape != kv or (normalise and state.normaliser.shape != sums):
        shapes = ", ".join(str(tuple(x.shape)) for x in state)
        raise ValueError(f"state has the shapes {shapes}: must be (B, H, F, dv), (B, H, F), {kv}, {sums}")


def check(q: Tensor, k: Tensor, v: Tensor, feature_map: str, log_decay: Tensor | None, dims: int) -> None:
    if feature_map not in ("identity", "taylor"):
        raise ValueError(f"feature_map = {feature_map!r}: must be 'identity' or 'taylor'")
    if q.dim() != dims or q.shape != k.shape or q.shape[:-1] != v.shape[:-1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        layout = "(B, T, H, f), (B, T, H, f), (B, T, H, dv)" if dims == 4 else "(B, H, f), (B, H, f), (B, H, dv)"
        raise ValueError(f"q, k, v have the shapes {shapes}: must be {layout}")
    if log_decay is not None and log_decay.shape not in (q.shape[-2:-1], q.shape[:-1]):
        layout = "(H,) or (B, T, H)" if dims == 4 else "(H,) or (B, H)"
        raise ValueError(
            f"log_decay has the shape {tuple(log_decay.shape)}: must be {layout}, "
            f"{tuple(q.shape[-2:-1])} or {tuple(q.shape[:-1])}"
        )
