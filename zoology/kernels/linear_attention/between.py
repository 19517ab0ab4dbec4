"""Triton kernels of linear attention between chunks: features, and the state before each chunk.

    S_n = exp(G_C) S_{n-1} + sum_t exp(G_C - G_t) phi(k_t) v_t^T,    z_n likewise, of phi(k_t) alone

and in the backward pass, from the end, with q for k, the output's gradient for v, and exp(G_t) for exp(G_C - G_t). A
program has some rows of S, all of its columns, and goes over the chunks of one segment of the sequence. Where there are
several segments a first pass makes the sum of each, and the second begins with those before it.

Taylor features are those of `taylor_features`, in its order. The factors of a product are picked by a matrix of 0 and
1, exactly, on the matrix units; so nothing is gathered, and in the backward pass nothing is scattered.

Letters: as `inside`; NF features of a key, FT of them at a time.
"""

import triton
import triton.language as tl

from zoology.kernels.linear_attention.tiles import place, put, tile


@triton.jit
def factors(first, F: tl.constexpr, FT: tl.constexpr):
    """Of features first, ..., first + FT - 1: which elements of x they are products of (-1 for the constant 1), and
    their weights."""
    c = first + tl.arange(0, FT)
    pair = tl.maximum(c - 1 - F, 0)
    i = tl.where(c > F, pair % F, c - 1)
    j = tl.where(c > F, (pair % F + pair // F) % F, -1)
    root: tl.constexpr = F**-0.25
    w = tl.where(c == 0, 1.0, tl.where(c <= F, root, tl.where(c <= 2 * F, root * root * 0.5**0.5, root * root)))
    return i, j, tl.where(c < (F + 1) * (F + 2) // 2, w, 0.0)


@triton.jit
def features(x, first, F: tl.constexpr, FW: tl.constexpr, FT: tl.constexpr, TAYLOR: tl.constexpr):
    """Some features of x (ROWS, FW), in float32: (ROWS, FT). Without a map all of x are its features."""
    if TAYLOR:
        i, j, w = factors(first, F, FT)
        at = tl.arange(0, FW)[:, None]
        a = tl.dot(x, (at == i[None, :]).to(x.dtype), input_precision="ieee") + tl.where(i < 0, 1.0, 0.0)[None, :]
        b = tl.dot(x, (at == j[None, :]).to(x.dtype), input_precision="ieee") + tl.where(j < 0, 1.0, 0.0)[None, :]
        phi = a * b * w[None, :]
    else:
        phi = x.to(tl.float32)
    return phi


@triton.jit
def by_features(
    grad, x, first, F: tl.constexpr, FW: tl.constexpr, FT: tl.constexpr, TAYLOR: tl.constexpr, NARROW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of x (ROWS, FW) from that of some features (ROWS, FT)."""
    if TAYLOR:
        i, j, w = factors(first, F, FT)
        at = tl.arange(0, FW)[:, None]
        pick_i, pick_j = (at == i[None, :]).to(x.dtype), (at == j[None, :]).to(x.dtype)
        grad = grad * w[None, :]
        a = tl.dot(x, pick_i, input_precision="ieee") + tl.where(i < 0, 1.0, 0.0)[None, :]
        b = tl.dot(x, pick_j, input_precision="ieee") + tl.where(j < 0, 1.0, 0.0)[None, :]
        out = tl.dot((grad * b).to(NARROW), tl.trans(pick_i).to(NARROW), input_precision=PRECISION)
        out = tl.dot((grad * a).to(NARROW), tl.trans(pick_j).to(NARROW), out, input_precision=PRECISION)
    else:
        out = grad
    return out


@triton.jit
def _turned(x, rows, stride, length, first, F: tl.constexpr, FW: tl.constexpr, FT: tl.constexpr, TAYLOR: tl.constexpr):
    """Some features of tokens, as columns: (FT, ROWS) in float32."""
    if TAYLOR:
        i, j, w = factors(first, F, FT)
        at = tl.arange(0, FW)[None, :]
        token = tl.trans(tile(x, rows, stride, length, F, FW))
        a = (
            tl.dot((i[:, None] == at).to(token.dtype), token, input_precision="ieee")
            + tl.where(i < 0, 1.0, 0.0)[:, None]
        )
        b = (
            tl.dot((j[:, None] == at).to(token.dtype), token, input_precision="ieee")
            + tl.where(j < 0, 1.0, 0.0)[:, None]
        )
        phi = a * b * w[:, None]
    else:
        c = first + tl.arange(0, FT)
        mask = (rows < length)[None, :] & (c < F)[:, None]
        phi = tl.load(x + rows[None, :] * stride + c[:, None], mask=mask, other=0.0).to(tl.float32)
    return phi


@triton.jit(do_not_specialize=["T", "H", "chunk", "repeat", "per", "segments"])
def states_kernel(
    x, y, near, rest, den, delta, start, start_z, sums, sums_z, fades, states, states_z, end, end_z, others, others_z,
    ends, T, H, chunk, repeat, sxb, sxt, sxh, syb, syt, syh, eps, per, segments,
    F: tl.constexpr, FW: tl.constexpr, NF: tl.constexpr, FT: tl.constexpr, V: tl.constexpr, VW: tl.constexpr,
    ROWS: tl.constexpr, TAYLOR: tl.constexpr, NORMALISE: tl.constexpr, DECAY: tl.constexpr, NARROW: tl.constexpr,
    PRECISION: tl.constexpr, REVERSE: tl.constexpr, STORE: tl.constexpr, START: tl.constexpr, END: tl.constexpr,
):  # fmt: skip
    """The states around each chunk, in float32 while they are summed.

    STORE: `states` (B, H, N + 1, NF, dv) get what is before each chunk and after the last; backward (B, H, N, NF, dv),
    the gradient of the state after each. Otherwise `sums` (B, H, segments, NF, dv) get each segment's own, and `fades`
    the log of its decay. `start` is the state before the first chunk (backward: the gradient of the one after the
    last), `end` gets the other one. Backward, `others` are the forward pass's states, and `ends` (B, H, N, tiles) get
    the sums of both states' products, which are the gradient of a chunk's whole decay.
    """
    tiles: tl.constexpr = (NF + FT - 1) // FT
    part = tl.program_id(0) % tiles
    segment = tl.program_id(0) // tiles % segments
    row = (tl.program_id(0) // tiles // segments).to(tl.int64)
    b, h = row // H, row % H
    chunks = tl.cdiv(T, chunk)
    first = part * FT
    c, rows = first + tl.arange(0, FT), tl.arange(0, ROWS)
    x += b * sxb + h * sxh
    y += b * syb + h * syh
    near += (b // repeat * H + h) * T
    rest += (b // repeat * H + h) * T
    kv = tl.zeros([FT, VW], tl.float32)
    z = tl.zeros([FT], tl.float32)
    if STORE:
        if START:
            kv = tile(start + row * NF * V, c, V, NF, V, VW)
            if NORMALISE:
                z = tl.load(start_z + row * NF + c, mask=c < NF, other=0.0)
        before = segments - 1 - segment if REVERSE else segment
        for i in range(0, before):
            other = row * segments + (segments - 1 - i if REVERSE else i)
            if DECAY:
                fade = tl.exp2(tl.load(fades + other))
                kv *= fade
                z *= fade
            kv += tile(sums + other * NF * V, c, V, NF, V, VW)
            if NORMALISE:
                z += tl.load(sums_z + other * NF + c, mask=c < NF, other=0.0)
    faded = 0.0
    count = tl.minimum(per, chunks - segment * per)
    for index in range(0, count):
        n = segment * per + (count - 1 - index if REVERSE else index)
        begin = (n * chunk).to(tl.int64)
        length = tl.minimum(chunk, T - n * chunk)
        if STORE:
            to = row * (chunks if REVERSE else chunks + 1) + n
            put(states + to * NF * V, kv, c, V, NF, V, VW)
            if NORMALISE:
                tl.store(states_z + to * NF + c, z, mask=c < NF)
            if REVERSE and DECAY:
                after = row * (chunks + 1) + n + 1
                both = tl.sum(kv * tile(others + after * NF * V, c, V, NF, V, VW).to(tl.float32), 1)
                if NORMALISE:
                    both += z * tl.load(others_z + after * NF + c, mask=c < NF, other=0.0)
                tl.store(ends + to * tiles + part, tl.sum(both, 0))
        if DECAY:
            near_end = tl.load(near + begin + length - 1)
            rest_end = tl.load(rest + begin + length - 1)
            fade = tl.exp2(near_end + rest_end)
            kv *= fade
            z *= fade
            faded += near_end + rest_end
        for done in range(0, length, ROWS):
            at = done + rows
            there = at < length
            phi = _turned(x + begin * sxt, at, sxt, length, first, F, FW, FT, TAYLOR)
            share = tl.where(there, 1.0, 0.0)
            if DECAY:
                near_at = tl.load(near + begin + at, mask=there, other=0.0)
                rest_at = tl.load(rest + begin + at, mask=there, other=0.0)
                if REVERSE:
                    share *= tl.exp2(near_at + rest_at)
                else:
                    share *= tl.exp2(tl.minimum((near_end - near_at) + (rest_end - rest_at), 0.0))
            if REVERSE and NORMALISE:
                share *= 1.0 / (tl.load(den + row * T + begin + at, mask=there, other=1.0) + eps)
            phi *= share[None, :]
            value = tile(y + begin * syt, at, syt, length, V, VW)
            kv = tl.dot(phi.to(NARROW), value.to(NARROW), kv, input_precision=PRECISION)
            if NORMALISE:
                if REVERSE:
                    phi *= -tl.load(delta + row * T + begin + at, mask=there, other=0.0)[None, :]
                z += tl.sum(phi, 1)
    if STORE:
        if segment == (0 if REVERSE else segments - 1):
            if not REVERSE:
                to = row * (chunks + 1) + chunks
                put(states + to * NF * V, kv, c, V, NF, V, VW)
                if NORMALISE:
                    tl.store(states_z + to * NF + c, z, mask=c < NF)
            if END:
                put(end + row * NF * V, kv, c, V, NF, V, VW)
                if NORMALISE:
                    tl.store(end_z + row * NF + c, z, mask=c < NF)
    else:
        to = row * segments + segment
        put(sums + to * NF * V, kv, c, V, NF, V, VW)
        if NORMALISE:
            tl.store(sums_z + to * NF + c, z, mask=c < NF)
        if DECAY and part == 0:
            tl.store(fades + to, faded)


@triton.jit(do_not_specialize=["T", "H", "chunk"])
def cumulative_kernel(g, near, rest, T, H, chunk, sgb, sgt, sgh, BLOCK: tl.constexpr):
    """G, summed in float64: g (P, T, H) of any strides -> near, rest (P, H, T)."""
    b, h, n, length, _ = place(T, H, chunk, BLOCK)
    begin = (n * chunk).to(tl.int64)
    tokens = tl.arange(0, BLOCK)
    there = tokens < length
    x = tl.load(g + b * sgb + h * sgh + (begin + tokens) * sgt, mask=there, other=0.0).to(tl.float64)
    total = tl.cumsum(x * 1.4426950408889634, 0)
    high = total.to(tl.float32)
    at = (b * H + h) * T + begin + tokens
    tl.store(near + at, high, mask=there)
    tl.store(rest + at, (total - high.to(tl.float64)).to(tl.float32), mask=there)


@triton.jit(do_not_specialize=["T", "H", "chunk"])
def decay_gradient_kernel(
    across, down, ends, dg, T, H, chunk,
    BLOCK: tl.constexpr, TILES: tl.constexpr, PADDED: tl.constexpr, BOTH: tl.constexpr, FUTURE: tl.constexpr,
):  # fmt: skip
    """dg_r = sum_{t >= r} (across_t - down_t) within the chunk, and its whole decay's: (B, H, T) -> (B, T, H)."""
    b, h, n, length, _ = place(T, H, chunk, BLOCK)
    begin = (n * chunk).to(tl.int64)
    tokens = tl.arange(0, BLOCK)
    there = tokens < length
    at = (b * H + h) * T + begin + tokens
    x = tl.load(across + at, mask=there, other=0.0).to(tl.float64)
    if BOTH:
        x -= tl.load(down + at, mask=there, other=0.0).to(tl.float64)
    x = tl.cumsum(x, 0, reverse=True)
    if FUTURE:
        parts = tl.arange(0, PADDED)
        whole = (b * H + h) * tl.cdiv(T, chunk) + n
        x += tl.sum(tl.load(ends + whole * TILES + parts, mask=parts < TILES, other=0.0).to(tl.float64), 0)
    tl.store(dg + (b * T + begin + tokens) * H + h, x.to(tl.float32), mask=there)
