"""Triton kernels of linear attention between chunks: the state before each.

    S_n = exp(G_C) S_{n-1} + sum_t exp(G_C - G_t) phi(k_t) v_t^T,    z_n likewise, of phi(k_t) alone

and in the backward pass, from the end, with q for k, the output's gradient for v, and exp(G_t) for exp(G_C - G_t). A
program has some rows of S, all of its columns, and goes over the chunks of one segment of the sequence, as if nothing
were around it. Where there are several segments a second kernel adds to their states what comes from other segments.

Between the kernels states are sums of `monomials`, times the squares of the features' weights.

Letters: as `inside`; KEPT rows of a state between the kernels, NF of one that is given or returned.
"""

import triton
import triton.language as tl

from zoology.kernels.linear_attention.monomials import public, turned
from zoology.kernels.linear_attention.tiles import numbers, place, put, tile


@triton.jit
def faded(near, rest, length):
    """exp2 of a chunk's whole G."""
    return tl.exp2(tl.load(near + length - 1) + tl.load(rest + length - 1))


@triton.jit(do_not_specialize=["T", "H", "chunk", "repeat", "per", "segments"])
def states_kernel(
    x, y, near, rest, share, delta, start, start_z, sums, sums_z, fades, states, states_z, end, end_z,
    T, H, chunk, repeat, sxb, sxt, sxh, syb, syt, syh, per, segments,
    F: tl.constexpr, FW: tl.constexpr, PERIOD: tl.constexpr, KEPT: tl.constexpr, NF: tl.constexpr, FT: tl.constexpr,
    V: tl.constexpr, VW: tl.constexpr, ROWS: tl.constexpr, TAYLOR: tl.constexpr, NORMALISE: tl.constexpr,
    DECAY: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr, REVERSE: tl.constexpr, SPLIT: tl.constexpr,
    START: tl.constexpr, END: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The states around each chunk, in float32 while they are summed.

    `states` (B, H, N + 1, KEPT, dv) get what is before each chunk and, if END, after the last; backward, (B, H, N,
    KEPT, dv), the gradient of the state after each. `start` is the state before the first chunk (backward: the
    gradient of the one after the last), `end` gets the other one. If SPLIT, `sums` (B, H, segments, KEPT, dv) get each
    segment's own and `fades` its decay instead of `end`.
    """
    tiles: tl.constexpr = (KEPT + FT - 1) // FT
    part = tl.program_id(0) % tiles
    segment = tl.program_id(0) // tiles % segments
    row = (tl.program_id(0) // tiles // segments).to(tl.int64)
    b, h = row // H, row % H
    chunks = tl.cdiv(T, chunk)
    c, rows = part * FT + tl.arange(0, FT), tl.arange(0, ROWS)
    at, w = public(c, F, PERIOD, TAYLOR)
    x += b * sxb + h * sxh
    y += b * syb + h * syh
    near += (b // repeat * H + h) * T
    rest += (b // repeat * H + h) * T
    pairs = tl.where((part + 1) * FT <= (F // 2 + 1) * PERIOD, 1, 0) if TAYLOR else 0
    kv = tl.zeros([FT, VW], tl.float32)
    z = tl.zeros([FT], tl.float32)
    if START and segment == (segments - 1 if REVERSE else 0):
        kv = tile(start + row * NF * V, at, V, NF, V, VW) / w[:, None]
        if NORMALISE:
            z = tl.load(start_z + row * NF + at, mask=at < NF, other=0.0) / w
    fade = 1.0
    count = tl.minimum(per, chunks - segment * per)
    for index in range(0, count):
        n = segment * per + (count - 1 - index if REVERSE else index)
        begin = (n * chunk).to(tl.int64)
        length = tl.minimum(chunk, T - n * chunk)
        to = row * (chunks if REVERSE else chunks + 1) + n
        put(states + to * KEPT * V, kv * (w * w)[:, None], c, V, KEPT, V, VW)
        if NORMALISE:
            tl.store(states_z + to * KEPT + c, z * w * w, mask=c < KEPT)
        if DECAY:
            near_end = tl.load(near + begin + length - 1)
            rest_end = tl.load(rest + begin + length - 1)
            whole = tl.exp2(near_end + rest_end)
            kv *= whole
            z *= whole
            fade *= whole
        # What comes after the last chunk is made only if it is wanted.
        stop = length if END else tl.where(n == (0 if REVERSE else chunks - 1), 0, length)
        for PAIRS in tl.static_range(2):
            for done in range(0, tl.where(pairs == PAIRS, stop, 0), ROWS):
                token = done + rows
                phi = turned(x + begin * sxt, token, sxt, length, c, F, FW, PERIOD, TAYLOR, PAIRS, EVEN)
                if DECAY:
                    near_at = numbers(near + begin, token, length, EVEN)
                    rest_at = numbers(rest + begin, token, length, EVEN)
                    if REVERSE:
                        left = tl.exp2(near_at + rest_at)
                    else:
                        left = tl.exp2(tl.minimum((near_end - near_at) + (rest_end - rest_at), 0.0))
                    phi *= (left if EVEN else tl.where(token < length, left, 0.0))[None, :]
                if NORMALISE:
                    if REVERSE:
                        z -= tl.sum(phi * numbers(delta + row * T + begin, token, length, EVEN)[None, :], 1)
                        phi *= numbers(share + row * T + begin, token, length, EVEN)[None, :]
                    else:
                        z += tl.sum(phi, 1)
                value = tile(y + begin * syt, token, syt, length, V, VW, EVEN)
                kv = tl.dot(phi.to(NARROW), value.to(NARROW), kv, input_precision=PRECISION)
        if TAYLOR and NORMALISE and not DECAY and not REVERSE and not EVEN:
            # Tokens beyond the last have a constant feature too, which nothing has masked.
            z -= tl.where(c == KEPT - 1, tl.cdiv(stop, ROWS) * ROWS - stop, 0).to(tl.float32)
    if END and segment == (0 if REVERSE else segments - 1):
        if not REVERSE:
            to = row * (chunks + 1) + chunks
            put(states + to * KEPT * V, kv * (w * w)[:, None], c, V, KEPT, V, VW)
            if NORMALISE:
                tl.store(states_z + to * KEPT + c, z * w * w, mask=c < KEPT)
        if not SPLIT:
            put(end + row * NF * V, kv * w[:, None], at, V, NF, V, VW)
            if NORMALISE:
                tl.store(end_z + row * NF + at, z * w, mask=at < NF)
    if SPLIT:
        to = row * segments + segment
        put(sums + to * KEPT * V, kv, c, V, KEPT, V, VW)
        if NORMALISE:
            tl.store(sums_z + to * KEPT + c, z, mask=c < KEPT)
        if DECAY and part == 0:
            tl.store(fades + to, fade)


@triton.jit(do_not_specialize=["T", "H", "chunk", "repeat", "per", "segments"])
def carry_kernel(
    near, rest, sums, sums_z, fades, states, states_z, end, end_z, T, H, chunk, repeat, per, segments,
    F: tl.constexpr, PERIOD: tl.constexpr, KEPT: tl.constexpr, NF: tl.constexpr, FT: tl.constexpr, V: tl.constexpr,
    VW: tl.constexpr, TAYLOR: tl.constexpr, NORMALISE: tl.constexpr, DECAY: tl.constexpr, REVERSE: tl.constexpr,
    END: tl.constexpr,
):  # fmt: skip
    """Adds to the states of a chunk what comes from the segments before its own (backward: after it). A program has
    some rows of one chunk's; one chunk more, at the far end, is `end`."""
    tiles: tl.constexpr = (KEPT + FT - 1) // FT
    chunks = tl.cdiv(T, chunk)
    part = tl.program_id(0) % tiles
    n = tl.program_id(0) // tiles % (chunks + 1)
    row = (tl.program_id(0) // tiles // (chunks + 1)).to(tl.int64)
    b, h = row // H, row % H
    if REVERSE:
        n -= 1
    last = n == (-1 if REVERSE else chunks)
    segment = tl.where(n < 0, 0, tl.minimum(n // per, segments - 1))
    before = segments - 1 - segment if REVERSE else segment
    idle = before == 0
    if not END:
        idle |= last
    if idle:
        return
    c = part * FT + tl.arange(0, FT)
    at, w = public(c, F, PERIOD, TAYLOR)
    near += (b // repeat * H + h) * T
    rest += (b // repeat * H + h) * T
    to = row * (chunks if REVERSE else chunks + 1) + tl.maximum(n, 0)
    # What is there is read before what is added: the sums are read one after another, and each is waited for.
    own = tile(states + to * KEPT * V, c, V, KEPT, V, VW)
    if NORMALISE:
        own_z = tl.load(states_z + to * KEPT + c, mask=c < KEPT, other=0.0)
    kv = tl.zeros([FT, VW], tl.float32)
    z = tl.zeros([FT], tl.float32)
    for i in range(0, before):
        other = row * segments + (segments - 1 - i if REVERSE else i)
        if DECAY:
            fade = tl.load(fades + other)
            kv *= fade
            z *= fade
        kv += tile(sums + other * KEPT * V, c, V, KEPT, V, VW)
        if NORMALISE:
            z += tl.load(sums_z + other * KEPT + c, mask=c < KEPT, other=0.0)
    if DECAY:
        first = n + 1 if REVERSE else segment * per
        stop = tl.minimum((segment + 1) * per, chunks) if REVERSE else n
        for i in range(first, stop):
            begin = (i * chunk).to(tl.int64)
            fade = faded(near + begin, rest + begin, tl.minimum(chunk, T - i * chunk))
            kv *= fade
            z *= fade
    if n >= 0:
        put(states + to * KEPT * V, kv * (w * w)[:, None] + own.to(tl.float32), c, V, KEPT, V, VW)
        if NORMALISE:
            tl.store(states_z + to * KEPT + c, z * w * w + own_z, mask=c < KEPT)
    if last:
        to = row * segments + segment
        kv += tile(sums + to * KEPT * V, c, V, KEPT, V, VW)
        put(end + row * NF * V, kv * w[:, None], at, V, NF, V, VW)
        if NORMALISE:
            z += tl.load(sums_z + to * KEPT + c, mask=c < KEPT, other=0.0)
            tl.store(end_z + row * NF + at, z * w, mask=at < NF)


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
    across, down, past, past_z, future, future_z, dg, T, H, chunk,
    F: tl.constexpr, PERIOD: tl.constexpr, KEPT: tl.constexpr, FT: tl.constexpr, V: tl.constexpr, VW: tl.constexpr,
    TAYLOR: tl.constexpr, NORMALISE: tl.constexpr, BLOCK: tl.constexpr, BOTH: tl.constexpr, FUTURE: tl.constexpr,
    END: tl.constexpr,
):  # fmt: skip
    """dg_r = sum_{t >= r} (across_t - down_t) within the chunk, and its whole decay's: (B, H, T) -> (B, T, H).

    That is the sum of the products of the state after the chunk and its gradient, which is 0 after the last but for
    END.
    """
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
        chunks = tl.cdiv(T, chunk)
        after, own = (b * H + h) * (chunks + 1) + n + 1, (b * H + h) * chunks + n
        both = tl.zeros([FT], tl.float32)
        for start in range(0, tl.where((n < chunks - 1) | END, KEPT, 0), FT):
            c = start + tl.arange(0, FT)
            w = public(c, F, PERIOD, TAYLOR)[1]
            pairs = tile(past + after * KEPT * V, c, V, KEPT, V, VW).to(tl.float32)
            pairs = tl.sum(pairs * tile(future + own * KEPT * V, c, V, KEPT, V, VW).to(tl.float32), 1)
            if NORMALISE:
                z = tl.load(past_z + after * KEPT + c, mask=c < KEPT, other=0.0)
                pairs += z * tl.load(future_z + own * KEPT + c, mask=c < KEPT, other=0.0)
            both += pairs / (w * w)
        x += tl.sum(both, 0).to(tl.float64)
    tl.store(dg + (b * T + begin + tokens) * H + h, x.to(tl.float32), mask=there)
