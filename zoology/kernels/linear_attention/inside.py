"""Triton kernels of linear attention inside a chunk: outputs and gradients from the scores, as FlashAttention has them,
but with a polynomial where it has the exponential of softmax. So nothing runs along and nothing is rescaled.

    o_t = sum_{s <= t} W_ts v_s / (D_t + eps),   D_t = sum_{s <= t} W_ts,   W_ts = d_ts w(q_t . k_s)

A program has one block of rows of one chunk of one head, and goes over the blocks of columns on the other side, first
over those that need no mask. Weights are made again in the backward pass: only 1 / (D + eps) is kept. No atomics: one
kernel makes dq, another dk and dv, and where a chunk fits into one block one program makes all three. What comes from
before a chunk, and what it gives to later ones, is in the states that `between` makes: PAST says that there are any
(START: before the first chunk too), FUTURE that there are gradients of them (END: of the last too). EVEN says that all
blocks of tokens are full, so that nothing is masked for the sequence's end.

Decays come as the logarithms G to base 2, from the beginning of the chunk, in two float32 parts: near + rest. Only
exp2(G_t - G_s), s <= t, is taken. The gradient by G is kept as what a token's row has of W dW, less its column.

Letters: B batch, T time, H heads, N chunks, f width of q and k (F, padded FW), dv width of v (V, padded VW).
"""

import triton
import triton.language as tl

from zoology.kernels.linear_attention.monomials import by_firsts, by_seconds, firsts, seconds
from zoology.kernels.linear_attention.tiles import decay, numbers, place, put, slope, tile, weight


@triton.jit
def last_row(states, to, there, KEPT: tl.constexpr, V: tl.constexpr, VW: tl.constexpr):
    """What a state has for the constant feature, in float32: (VW,)."""
    columns = tl.arange(0, VW)
    row = tl.load(states + (to * KEPT + KEPT - 1) * V + columns, mask=columns < tl.where(there, V, 0), other=0.0)
    return row.to(tl.float32)


@triton.jit(do_not_specialize=["T", "H", "chunk", "repeat"])
def output_kernel(
    q, k, v, near, rest, states, states_z, second, o, share, T, H, chunk, repeat,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, scale, eps,
    F: tl.constexpr, FW: tl.constexpr, V: tl.constexpr, VW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    PERIOD: tl.constexpr, KEPT: tl.constexpr, FT: tl.constexpr, PAST: tl.constexpr, START: tl.constexpr,
    TAYLOR: tl.constexpr, NORMALISE: tl.constexpr, DECAY: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    b, h, n, length, block = place(T, H, chunk, ROWS)
    first = block * ROWS
    if first >= length:
        return
    begin = (n * chunk).to(tl.int64)
    rows, cols = first + tl.arange(0, ROWS), tl.arange(0, COLS)
    q += b * sqb + h * sqh + begin * sqt
    k += b * skb + h * skh + begin * skt
    v += b * svb + h * svh + begin * svt
    o += ((b * T + begin) * H + h) * V
    share += (b * H + h) * T + begin
    near += (b // repeat * H + h) * T + begin
    rest += (b // repeat * H + h) * T + begin
    query = tile(q, rows, sqt, length, F, FW, EVEN)
    if DECAY:
        near_row = numbers(near, rows, length, EVEN)
        rest_row = numbers(rest, rows, length, EVEN)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, VW], tl.float32)
    if PAST:
        to = (b * H + h) * (tl.cdiv(T, chunk) + 1) + n
        seen = n >= (0 if START else 1)
        c = tl.arange(0, FT)
        a = firsts(query, c, F, FW, PERIOD, TAYLOR)
        for start in range(0, tl.where(seen, KEPT - 1 if TAYLOR else KEPT, 0), FT):
            c = start + tl.arange(0, FT)
            if TAYLOR and FT < PERIOD:
                a = firsts(query, c, F, FW, PERIOD, TAYLOR)
            if TAYLOR:
                picks = tile(second, c, FW, KEPT - 1, FW, FW, (KEPT - 1) % FT == 0)
                phi = a * seconds(query, picks, c, F, PERIOD)
            else:
                phi = a
            kv = tile(states + to * KEPT * V, c, V, KEPT, V, VW, (KEPT - 1) % FT == 0 and TAYLOR)
            acc = tl.dot(phi.to(NARROW), kv, acc, input_precision=PRECISION)
            if NORMALISE:
                z = numbers(states_z + to * KEPT, c, KEPT, (KEPT - 1) % FT == 0 and TAYLOR)
                total += tl.sum(phi * z[None, :], 1)
        if TAYLOR:
            acc += last_row(states, to, seen, KEPT, V, VW)[None, :]
            if NORMALISE:
                total += tl.load(states_z + to * KEPT + KEPT - 1, mask=seen, other=0.0)
        if DECAY:
            fade = tl.exp2(near_row + rest_row)
            acc *= fade[:, None]
            total *= fade
    edge = first // COLS * COLS  # before it all columns are past for all rows
    for MASKED in tl.static_range(2):
        for start in range(edge if MASKED else 0, tl.minimum(first + ROWS, length) if MASKED else edge, COLS):
            past = start + cols
            s = tl.dot(query, tl.trans(tile(k, past, skt, length, F, FW, EVEN or not MASKED)), input_precision="ieee")
            w = weight(s, scale, TAYLOR)
            if MASKED:
                w = tl.where((rows - start)[:, None] >= cols[None, :], w, 0.0)
            if DECAY:
                near_col = numbers(near, past, length, EVEN)
                rest_col = numbers(rest, past, length, EVEN)
                w *= decay(near_row[:, None], rest_row[:, None], near_col[None, :], rest_col[None, :])
            total += tl.sum(w, 1)
            value = tile(v, past, svt, length, V, VW, EVEN or not MASKED)
            acc = tl.dot(w.to(NARROW), value.to(NARROW), acc, input_precision=PRECISION)
    if NORMALISE:
        part = 1.0 / (total + eps)
        acc *= part[:, None]
        tl.store(share + rows, part, mask=rows < length)
    put(o, acc, rows, H * V, length, V, VW, EVEN)


@triton.jit(do_not_specialize=["T", "H", "chunk", "repeat"])
def query_gradient_kernel(
    q, k, v, near, rest, states, states_z, second, o, share, do, dq, delta, across, T, H, chunk, repeat,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, scale, eps,
    F: tl.constexpr, FW: tl.constexpr, V: tl.constexpr, VW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    PERIOD: tl.constexpr, KEPT: tl.constexpr, FT: tl.constexpr, PAST: tl.constexpr, START: tl.constexpr,
    TAYLOR: tl.constexpr, NORMALISE: tl.constexpr, DECAY: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """dq; delta_t = do_t . o_t / (D_t + eps), which other kernels read; and `across`, the rows' sums of W dW."""
    b, h, n, length, block = place(T, H, chunk, ROWS)
    first = block * ROWS
    if first >= length:
        return
    begin = (n * chunk).to(tl.int64)
    rows, cols = first + tl.arange(0, ROWS), tl.arange(0, COLS)
    q += b * sqb + h * sqh + begin * sqt
    k += b * skb + h * skh + begin * skt
    v += b * svb + h * svh + begin * svt
    o += ((b * T + begin) * H + h) * V
    do += ((b * T + begin) * H + h) * V
    dq += ((b * T + begin) * H + h) * F
    at = (b * H + h) * T + begin
    near += (b // repeat * H + h) * T + begin
    rest += (b // repeat * H + h) * T + begin
    query = tile(q, rows, sqt, length, F, FW, EVEN)
    above = tile(do, rows, H * V, length, V, VW, EVEN)
    if NORMALISE:
        out = tile(o, rows, H * V, length, V, VW, EVEN)
        part = numbers(share + at, rows, length, EVEN)
        pull = tl.sum(above.to(tl.float32) * out.to(tl.float32), 1)
        tl.store(delta + at + rows, pull * part, mask=rows < length)
    if DECAY:
        near_row = numbers(near, rows, length, EVEN)
        rest_row = numbers(rest, rows, length, EVEN)
        sums = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, FW], tl.float32)
    if PAST:
        to = (b * H + h) * (tl.cdiv(T, chunk) + 1) + n
        c = tl.arange(0, FT)
        a = firsts(query, c, F, FW, PERIOD, TAYLOR)
        by_first = tl.zeros([ROWS, FT], tl.float32)
        for start in range(0, tl.where((n > 0) | START, KEPT - 1 if TAYLOR else KEPT, 0), FT):
            c = start + tl.arange(0, FT)
            kv = tile(states + to * KEPT * V, c, V, KEPT, V, VW, (KEPT - 1) % FT == 0 and TAYLOR)
            grad = tl.dot(above.to(NARROW), tl.trans(kv), input_precision=PRECISION)
            if NORMALISE:
                z = numbers(states_z + to * KEPT, c, KEPT, (KEPT - 1) % FT == 0 and TAYLOR)
                grad -= pull[:, None] * z[None, :]
            if TAYLOR:
                if FT < PERIOD:
                    a = firsts(query, c, F, FW, PERIOD, TAYLOR)
                picks = tile(second, c, FW, KEPT - 1, FW, FW, (KEPT - 1) % FT == 0)
                by_a = grad * seconds(query, picks, c, F, PERIOD)
                acc = by_seconds(grad * a, picks, acc, NARROW, PRECISION)
                if FT < PERIOD:
                    acc = by_firsts(by_a, acc, c, F, FW, PERIOD, NARROW, PRECISION)
                else:
                    by_first += by_a
            else:
                by_a = grad
                acc += grad
            if DECAY:
                sums += tl.sum(by_a * a, 1)
        if TAYLOR and FT >= PERIOD:
            acc = by_firsts(by_first, acc, tl.arange(0, FT), F, FW, PERIOD, NARROW, PRECISION)
        if TAYLOR and DECAY:
            seen = n >= (0 if START else 1)
            own = tl.sum(above.to(tl.float32) * last_row(states, to, seen, KEPT, V, VW)[None, :], 1)
            if NORMALISE:
                own -= pull * tl.load(states_z + to * KEPT + KEPT - 1, mask=seen, other=0.0)
            sums += own
        if DECAY:
            fade = tl.exp2(near_row + rest_row)
            acc *= fade[:, None]
            sums *= fade
    edge = first // COLS * COLS  # before it all columns are past for all rows
    for MASKED in tl.static_range(2):
        for start in range(edge if MASKED else 0, tl.minimum(first + ROWS, length) if MASKED else edge, COLS):
            past = start + cols
            key = tile(k, past, skt, length, F, FW, EVEN or not MASKED)
            s = tl.dot(query, tl.trans(key), input_precision="ieee")
            dw = tl.dot(above, tl.trans(tile(v, past, svt, length, V, VW, EVEN or not MASKED)), input_precision="ieee")
            if NORMALISE:
                dw -= pull[:, None]
            if MASKED:
                dw = tl.where((rows - start)[:, None] >= cols[None, :], dw, 0.0)
            if DECAY:
                near_col = numbers(near, past, length, EVEN)
                rest_col = numbers(rest, past, length, EVEN)
                dw *= decay(near_row[:, None], rest_row[:, None], near_col[None, :], rest_col[None, :])
                # A token's own weight has no decay: it would be added here and taken off again.
                pairs = dw * weight(s, scale, TAYLOR)
                if MASKED:
                    pairs = tl.where((rows - start)[:, None] > cols[None, :], pairs, 0.0)
                sums += tl.sum(pairs, 1)
            ds = dw * slope(s, scale, TAYLOR)
            acc = tl.dot(ds.to(NARROW), key.to(NARROW), acc, input_precision=PRECISION)
    if NORMALISE:
        acc *= part[:, None]
    put(dq, acc, rows, H * F, length, F, FW, EVEN)
    if DECAY:
        if NORMALISE:
            sums *= part
        tl.store(across + at + rows, sums, mask=rows < length)


@triton.jit(do_not_specialize=["T", "H", "chunk", "repeat"])
def key_gradient_kernel(
    q, k, v, near, rest, states, states_z, second, share, do, dk, dv, delta, down, T, H, chunk, repeat,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, scale, eps,
    F: tl.constexpr, FW: tl.constexpr, V: tl.constexpr, VW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    PERIOD: tl.constexpr, KEPT: tl.constexpr, FT: tl.constexpr, FUTURE: tl.constexpr, END: tl.constexpr,
    TAYLOR: tl.constexpr, NORMALISE: tl.constexpr, DECAY: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """dk, dv, and `down`, the columns' sums of W dW. A program's rows are keys here, its columns later queries."""
    b, h, n, length, block = place(T, H, chunk, ROWS)
    first = block * ROWS
    if first >= length:
        return
    begin = (n * chunk).to(tl.int64)
    rows, cols = first + tl.arange(0, ROWS), tl.arange(0, COLS)
    q += b * sqb + h * sqh + begin * sqt
    k += b * skb + h * skh + begin * skt
    v += b * svb + h * svh + begin * svt
    do += ((b * T + begin) * H + h) * V
    dk += ((b * T + begin) * H + h) * F
    dv += ((b * T + begin) * H + h) * V
    at = (b * H + h) * T + begin
    near += (b // repeat * H + h) * T + begin
    rest += (b // repeat * H + h) * T + begin
    key = tile(k, rows, skt, length, F, FW, EVEN)
    value = tile(v, rows, svt, length, V, VW, EVEN)
    if DECAY:
        near_row = numbers(near, rows, length, EVEN)
        rest_row = numbers(rest, rows, length, EVEN)
        sums = tl.zeros([ROWS], tl.float32)
    by_key = tl.zeros([ROWS, FW], tl.float32)
    by_value = tl.zeros([ROWS, VW], tl.float32)
    if FUTURE:
        chunks = tl.cdiv(T, chunk)
        to = (b * H + h) * chunks + n
        seen = n < (chunks if END else chunks - 1)
        c = tl.arange(0, FT)
        a = firsts(key, c, F, FW, PERIOD, TAYLOR)
        by_first = tl.zeros([ROWS, FT], tl.float32)
        for start in range(0, tl.where(seen, KEPT - 1 if TAYLOR else KEPT, 0), FT):
            c = start + tl.arange(0, FT)
            kv = tile(states + to * KEPT * V, c, V, KEPT, V, VW, (KEPT - 1) % FT == 0 and TAYLOR)
            grad = tl.dot(value.to(NARROW), tl.trans(kv), input_precision=PRECISION)
            if NORMALISE:
                grad += numbers(states_z + to * KEPT, c, KEPT, (KEPT - 1) % FT == 0 and TAYLOR)[None, :]
            if TAYLOR:
                if FT < PERIOD:
                    a = firsts(key, c, F, FW, PERIOD, TAYLOR)
                picks = tile(second, c, FW, KEPT - 1, FW, FW, (KEPT - 1) % FT == 0)
                other = seconds(key, picks, c, F, PERIOD)
                phi = a * other
            else:
                phi = a
            if DECAY:
                sums += tl.sum(grad * phi, 1)
            by_value = tl.dot(phi.to(NARROW), kv, by_value, input_precision=PRECISION)
            if TAYLOR:
                by_key = by_seconds(grad * a, picks, by_key, NARROW, PRECISION)
                if FT < PERIOD:
                    by_key = by_firsts(grad * other, by_key, c, F, FW, PERIOD, NARROW, PRECISION)
                else:
                    by_first += grad * other
            else:
                by_key += grad
        if TAYLOR:
            if FT >= PERIOD:
                by_key = by_firsts(by_first, by_key, tl.arange(0, FT), F, FW, PERIOD, NARROW, PRECISION)
            one = last_row(states, to, seen, KEPT, V, VW)
            by_value += one[None, :]
            if DECAY:
                sums += tl.sum(value.to(tl.float32) * one[None, :], 1)
                if NORMALISE:
                    sums += tl.load(states_z + to * KEPT + KEPT - 1, mask=seen, other=0.0)
        if DECAY:
            fade = decay(tl.load(near + length - 1), tl.load(rest + length - 1), near_row, rest_row)
            by_key *= fade[:, None]
            by_value *= fade[:, None]
            sums *= fade
    edge = (first + ROWS + COLS - 1) // COLS * COLS  # from it on all columns are later than all rows
    for MASKED in tl.static_range(2):
        for start in range(
            first // COLS * COLS if MASKED else edge, tl.minimum(edge, length) if MASKED else length, COLS
        ):
            later = start + cols
            query = tile(q, later, sqt, length, F, FW, EVEN)
            above = tile(do, later, H * V, length, V, VW, EVEN)
            s = tl.dot(key, tl.trans(query), input_precision="ieee")
            dw = tl.dot(value, tl.trans(above), input_precision="ieee")
            w = weight(s, scale, TAYLOR)
            if NORMALISE:
                part = numbers(share + at, later, length, EVEN)
                pull = numbers(delta + at, later, length, EVEN)
                w *= part[None, :]
                dw = dw * part[None, :] - pull[None, :]
            if MASKED:
                w = tl.where(cols[None, :] >= (rows - start)[:, None], w, 0.0)
                dw = tl.where(cols[None, :] >= (rows - start)[:, None], dw, 0.0)
            if DECAY:
                near_col = numbers(near, later, length, EVEN)
                rest_col = numbers(rest, later, length, EVEN)
                d = decay(near_col[None, :], rest_col[None, :], near_row[:, None], rest_row[:, None])
                w *= d
                dw *= d
                pairs = dw * weight(s, scale, TAYLOR)
                if MASKED:
                    pairs = tl.where(cols[None, :] > (rows - start)[:, None], pairs, 0.0)
                sums += tl.sum(pairs, 1)
            by_value = tl.dot(w.to(NARROW), above.to(NARROW), by_value, input_precision=PRECISION)
            ds = dw * slope(s, scale, TAYLOR)
            by_key = tl.dot(ds.to(NARROW), query.to(NARROW), by_key, input_precision=PRECISION)
    put(dk, by_key, rows, H * F, length, F, FW, EVEN)
    put(dv, by_value, rows, H * V, length, V, VW, EVEN)
    if DECAY:
        tl.store(down + at + rows, sums, mask=rows < length)


@triton.jit(do_not_specialize=["T", "H", "chunk", "repeat"])
def gradient_kernel(
    q, k, v, near, rest, do, dq, dk, dv, across, T, H, chunk, repeat,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, scale, eps,
    F: tl.constexpr, FW: tl.constexpr, V: tl.constexpr, VW: tl.constexpr, ROWS: tl.constexpr,
    TAYLOR: tl.constexpr, NORMALISE: tl.constexpr, DECAY: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """All gradients of a chunk of at most ROWS tokens that has nothing before it; `across` is rows less columns.

    D and do . o come from the weights again, so neither D nor o is read.
    """
    b, h, n, length, _ = place(T, H, chunk, ROWS)
    begin = (n * chunk).to(tl.int64)
    rows = tl.arange(0, ROWS)
    at = (b * T + begin) * H + h
    near += (b // repeat * H + h) * T + begin
    rest += (b // repeat * H + h) * T + begin
    query = tile(q + b * sqb + h * sqh + begin * sqt, rows, sqt, length, F, FW, EVEN)
    key = tile(k + b * skb + h * skh + begin * skt, rows, skt, length, F, FW, EVEN)
    value = tile(v + b * svb + h * svh + begin * svt, rows, svt, length, V, VW, EVEN)
    above = tile(do + at * V, rows, H * V, length, V, VW, EVEN)
    s = tl.dot(query, tl.trans(key), input_precision="ieee")
    dw = tl.dot(above, tl.trans(value), input_precision="ieee")
    causal = rows[:, None] >= rows[None, :]
    w = tl.where(causal, weight(s, scale, TAYLOR), 0.0)
    if DECAY:
        g = numbers(near, rows, length, EVEN)
        r = numbers(rest, rows, length, EVEN)
        d = decay(g[:, None], r[:, None], g[None, :], r[None, :])
        w *= d
    if NORMALISE:
        share = tl.where(rows < length, 1.0 / (tl.sum(w, 1) + eps), 0.0)[:, None]
        w *= share
        dw = (dw - tl.sum(w * dw, 1)[:, None]) * share
    dv_tile = tl.dot(tl.trans(w.to(NARROW)), above.to(NARROW), input_precision=PRECISION)
    put(dv + at * V, dv_tile, rows, H * V, length, V, VW, EVEN)
    dw = tl.where(causal, dw, 0.0)
    if DECAY:
        dw *= d
        both = tl.where(rows[:, None] > rows[None, :], dw * weight(s, scale, TAYLOR), 0.0)
        tl.store(across + (b * H + h) * T + begin + rows, tl.sum(both, 1) - tl.sum(both, 0), mask=rows < length)
    ds = (dw * slope(s, scale, TAYLOR)).to(NARROW)
    put(dq + at * F, tl.dot(ds, key.to(NARROW), input_precision=PRECISION), rows, H * F, length, F, FW, EVEN)
    put(
        dk + at * F, tl.dot(tl.trans(ds), query.to(NARROW), input_precision=PRECISION), rows, H * F, length, F, FW, EVEN
    )
