"""The Triton kernels of WKV: a walk along the tokens, and one back.

Channels have nothing to do with one another: a thread has one of them in one sequence, its two sums and their exponent,
and walks from token to token. It reads a chunk of tokens before it computes with the first, as a walk that reads one at
a time waits for memory at each. For the backward pass the walk leaves its state before each chunk. The walk back makes
a chunk's states from that anew, in its registers, and goes through them from the last.

The gradients of the true sums, N and D, are held as (m e^q, l e^q), as these are as (n e^p, d e^p): a sum S_s that an
output was divided by has in it e^(k_t - (s - 1 - t) w) of each t before, so that no exponential is taken of a number
above 0 on the way back either.

An exponent falls by w in each token. It is not made of the one before, as the rounding of all tokens would add up, but
of the key that it was when it last rose, and how many tokens ago that is. On the way back q rises only when it is too
low by `SLACK`: as p falls with the tokens, -p would lift it by next to nothing at each.

Letters: R replicas, B batch, T time, D channels; n and d the sums, p their exponent, `peak` what that
was `ago` tokens before.
"""

import triton
import triton.language as tl

EMPTY, SLACK = tl.constexpr(-1e38), tl.constexpr(8.0)


@triton.jit
def _place(B, D, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """This program's tile of all replicas' tiles and its replica; its channels, its sequences, and which there are."""
    parts, tiles = tl.cdiv(D, WIDTH), tl.cdiv(B, ROWS)
    dims = tl.program_id(0) % parts * WIDTH + tl.arange(0, WIDTH)
    tile = (tl.program_id(0) // parts).to(tl.int64)
    batch = tile % tiles * ROWS + tl.arange(0, ROWS)
    return tile, tile // tiles, dims, batch, (batch < B)[:, None] & (dims < D)[None, :]


@triton.jit
def _fall(peak, ago, w, other, slack):
    """An exponent a token later, when it is `other` or at most `slack` less: what becomes of it, of its peak and of
    `ago`; and what the sums of before and something of size e^other are to be multiplied by."""
    fallen = peak - (ago + 1) * w
    risen = other > fallen + slack
    top = tl.where(risen, other, fallen)
    return top, tl.where(risen, other, peak), tl.where(risen, 0.0, ago + 1), tl.exp(fallen - top), tl.exp(other - top)


@triton.jit
def _join(n, d, peak, ago, w, k, v):
    """The state after a token."""
    top, peak, ago, early, late = _fall(peak, ago, w, k, 0.0)
    return n * early + v * late, d * early + late, top, peak, ago


@triton.jit(do_not_specialize=["B", "T"])
def wkv_kernel(
    k, v, w, u, n, d, p, y, after_n, after_d, after_p, kept, B, T, D, k_r, k_b, k_t, v_r, v_b, v_t,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, STATE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    _, replica, dims, batch, both = _place(B, D, ROWS, WIDTH)
    sequence = replica * B + batch
    k += (replica * k_r + batch * k_b)[:, None] + dims[None, :]
    v += (replica * v_r + batch * v_b)[:, None] + dims[None, :]
    y += (sequence * T * D)[:, None] + dims[None, :]
    of_state = (sequence * D)[:, None] + dims[None, :]
    kept += (sequence * tl.cdiv(T, CHUNK) * 3 * D)[:, None] + dims[None, :]
    rate = tl.load(w + replica * D + dims, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    bonus = tl.load(u + replica * D + dims, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    sum_n, sum_d = tl.zeros([ROWS, WIDTH], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)
    top = tl.full([ROWS, WIDTH], EMPTY, tl.float32)
    if STATE:
        sum_n = tl.load(n + of_state, mask=both, other=0.0).to(tl.float32)
        sum_d = tl.load(d + of_state, mask=both, other=0.0).to(tl.float32)
        top = tl.load(p + of_state, mask=both, other=EMPTY).to(tl.float32)
    peak, ago = top, tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, T, CHUNK):
        if KEEP:
            tl.store(kept, sum_n, mask=both)
            tl.store(kept + D, sum_d, mask=both)
            tl.store(kept + 2 * D, top, mask=both)
            kept += 3 * D
        left = tl.where(both, T - first, 0)
        keys, values = (), ()  # tuples grow by +: Triton unpacks none
        for i in tl.static_range(CHUNK):
            keys = keys + (tl.load(k + i * k_t, mask=left > i, other=0.0),)  # noqa: RUF005
            values = values + (tl.load(v + i * v_t, mask=left > i, other=0.0),)  # noqa: RUF005
        for i in tl.static_range(CHUNK):
            key, value = keys[i].to(tl.float32), values[i].to(tl.float32)
            most = tl.maximum(top, key + bonus)
            past, now = tl.exp(top - most), tl.exp(key + bonus - most)
            out = (sum_n * past + value * now) / (sum_d * past + now)
            tl.store(y + i * D, out, mask=left > i)
            new_n, new_d, new_top, new_peak, new_ago = _join(sum_n, sum_d, peak, ago, rate, key, value)
            # Beyond the end nothing comes to the sums.
            sum_n = tl.where(left > i, new_n, sum_n)
            sum_d = tl.where(left > i, new_d, sum_d)
            top = tl.where(left > i, new_top, top)
            peak = tl.where(left > i, new_peak, peak)
            ago = tl.where(left > i, new_ago, ago)
        k += CHUNK * k_t
        v += CHUNK * v_t
        y += CHUNK * D
    tl.store(after_n + of_state, sum_n, mask=both)
    tl.store(after_d + of_state, sum_d, mask=both)
    tl.store(after_p + of_state, top, mask=both)


@triton.jit(do_not_specialize=["B", "T"])
def wkv_gradient_kernel(
    grad, by_after_n, by_after_d, k, v, w, u, p, after_p, kept, by_k, by_v, by_rates, by_n, by_d, B, T, D,
    g_r, g_b, g_t, k_r, k_b, k_t, v_r, v_b, v_t,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, STATE: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """by_rates (R, tiles, 2, D): of each tile those of w and u."""
    tile, replica, dims, batch, both = _place(B, D, ROWS, WIDTH)
    sequence = replica * B + batch
    chunks = tl.cdiv(T, CHUNK)
    end = (chunks - 1) * CHUNK  # where the last chunk begins
    grad += (replica * g_r + batch * g_b + end * g_t)[:, None] + dims[None, :]
    k += (replica * k_r + batch * k_b + end * k_t)[:, None] + dims[None, :]
    v += (replica * v_r + batch * v_b + end * v_t)[:, None] + dims[None, :]
    by_k += ((sequence * T + end) * D)[:, None] + dims[None, :]
    by_v += ((sequence * T + end) * D)[:, None] + dims[None, :]
    of_state = (sequence * D)[:, None] + dims[None, :]
    kept += ((sequence * chunks + chunks - 1) * 3 * D)[:, None] + dims[None, :]
    rate = tl.load(w + replica * D + dims, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    bonus = tl.load(u + replica * D + dims, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    zero = tl.zeros([ROWS, WIDTH], tl.float32)
    pull_n, pull_d, q = zero, zero, zero + EMPTY
    if AFTER:
        pull_n = tl.load(by_after_n + of_state, mask=both, other=0.0).to(tl.float32)
        pull_d = tl.load(by_after_d + of_state, mask=both, other=0.0).to(tl.float32)
        q = -tl.load(after_p + of_state, mask=both, other=0.0).to(tl.float32)
    q_peak, q_ago = q, zero
    of_rate, of_bonus = zero, zero
    for before_end in range(0, T, CHUNK):
        left = tl.where(both, T - end + before_end, 0)
        keys, values, pulls, states = (), (), (), ()  # tuples grow by +: Triton unpacks none
        for i in tl.static_range(CHUNK):
            keys = keys + (tl.load(k + i * k_t, mask=left > i, other=0.0),)  # noqa: RUF005
            values = values + (tl.load(v + i * v_t, mask=left > i, other=0.0),)  # noqa: RUF005
            pulls = pulls + (tl.load(grad + i * g_t, mask=left > i, other=0.0),)  # noqa: RUF005
        sum_n = tl.load(kept, mask=both, other=0.0)
        sum_d = tl.load(kept + D, mask=both, other=0.0)
        top = tl.load(kept + 2 * D, mask=both, other=EMPTY)
        peak, ago = top, zero
        for i in tl.static_range(CHUNK):
            states = states + ((sum_n, sum_d, top),)  # noqa: RUF005
            key, value = keys[i].to(tl.float32), values[i].to(tl.float32)
            sum_n, sum_d, top, peak, ago = _join(sum_n, sum_d, peak, ago, rate, key, value)
        for i in tl.static_range(CHUNK - 1, -1, -1):
            key, value, g = keys[i].to(tl.float32), values[i].to(tl.float32), pulls[i].to(tl.float32)
            sum_n, sum_d, top = states[i][0], states[i][1], states[i][2]
            # Through the state after this token: N' = e^-w N + e^k v, D' = e^-w D + e^k.
            own = tl.exp(tl.minimum(q + key, 0.0))
            of_v = pull_n * own
            of_k = own * (pull_n * value + pull_d)
            of_rate -= tl.where(
                left > i, tl.exp(tl.minimum(q - rate + top, 0.0)) * (pull_n * sum_n + pull_d * sum_d), 0.0
            )
            # Through the output: y = (N + e^(u + k) v) / (D + e^(u + k)), S = (sum_d past + now) e^most.
            most = tl.maximum(top, key + bonus)
            past, now = tl.exp(top - most), tl.exp(key + bonus - most)
            share = g / (sum_d * past + now)
            out = (sum_n * past + value * now) / (sum_d * past + now)
            of_v += share * now
            of_now = share * now * (value - out)
            of_bonus += of_now
            of_k += of_now
            tl.store(by_k + i * D, of_k, mask=left > i)
            tl.store(by_v + i * D, of_v, mask=left > i)
            new, new_peak, new_ago, later, here = _fall(q_peak, q_ago, rate, -most, SLACK)
            pull_n = tl.where(left > i, pull_n * later + share * here, pull_n)
            pull_d = tl.where(left > i, pull_d * later - share * out * here, pull_d)
            q = tl.where(left > i, new, q)
            q_peak = tl.where(left > i, new_peak, q_peak)
            q_ago = tl.where(left > i, new_ago, q_ago)
        grad -= CHUNK * g_t
        k -= CHUNK * k_t
        v -= CHUNK * v_t
        by_k -= CHUNK * D
        by_v -= CHUNK * D
        kept -= 3 * D
    if STATE:
        scale = tl.exp(tl.minimum(q + tl.load(p + of_state, mask=both, other=0.0).to(tl.float32), 0.0))
        tl.store(by_n + of_state, pull_n * scale, mask=both)
        tl.store(by_d + of_state, pull_d * scale, mask=both)
    by_rates += tile * 2 * D + dims
    tl.store(by_rates, tl.sum(of_rate, 0), mask=dims < D)
    tl.store(by_rates + D, tl.sum(of_bonus, 0), mask=dims < D)
