"""The Triton kernels of softmax attention over short sequences.

FlashAttention (arXiv:2205.14135), laid out for thousands of short sequences: queries, keys and values are read where
the projections have put them, (B, T, H, d), and a program has a block of queries of one head. In the backward pass, a
sequence that fits into one block is one program, which makes its weights again and all three gradients from them;
longer ones have a kernel with a block of queries, for dq, and one with a block of keys, for dk and dv. No atomics: the
same numbers in every run.

Dropout: each query of each head has an odd number of Philox (Salmon et al., SC 2011), whose seed comes from memory, and
each key a fixed one, its place mixed. A weight is dropped where their product modulo 2^32 is small: multiplicative
hashing, one multiplication where mixing took seven instructions. So the same weights are dropped in every kernel,
whatever its blocks, and in a CUDA graph the seed is another one in every replay.

Letters: B batch, T queries, S keys, H heads, d head width (D, padded WIDTH), w window, P seeds, each for B / P rows.
"""

import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)
"""Of Philox: the fewest that pass every test of randomness in the paper."""


@triton.jit
def _tile(x, first, index, limit, stride, dims, D: tl.constexpr):
    """Rows first + index of (limit, D) at a pointer, 0 beyond the limit."""
    row = first + index
    there = (row < limit)[:, None] & (dims < D)[None, :]
    return tl.load(x + (row.to(tl.int64) * stride)[:, None] + dims[None, :], mask=there, other=0.0)


@triton.jit
def _put(x, tile, first, index, limit, stride, dims, D: tl.constexpr):
    row = first + index
    there = (row < limit)[:, None] & (dims < D)[None, :]
    tl.store(x + (row.to(tl.int64) * stride)[:, None] + dims[None, :], tile, mask=there)


@triton.jit
def _of_queries(seed, head, query):
    """A random odd number for each query of a head."""
    at = query.to(tl.uint32)
    zero = at * 0
    first, _, _, _ = tl.philox(seed, at, zero + head.to(tl.uint32), zero, zero, ROUNDS)
    return first | 1


@triton.jit
def _of_keys(key):
    """A number for each key, the same in every head: its place, mixed. The square keeps small multiples of one number
    from being others, as a product with any constant would not: such keys would be dropped together."""
    x = (key + 1).to(tl.uint32) * 0x9E3779B9
    return (x * (x | 1)) ^ (x >> 16)


@triton.jit
def _kept(of_queries, of_keys, threshold):
    """Which weights are not dropped, for arguments that are broadcast to the tile's shape."""
    return of_queries * of_keys >= threshold.to(tl.uint32) * 2


@triton.jit
def _seen(
    x, unseen, query, rows, key, columns, window, QUERIES: tl.constexpr, KEYS: tl.constexpr, LONG: tl.constexpr
):  # fmt: skip
    """A tile of weights, `unseen` where a key is not in the window of its query; `query` and `key` are the positions of
    the first ones, and rows and columns the others' distances, broadcast to the tile's shape. Where many blocks lie
    inside of all windows (LONG), these are not looked at one by one."""
    ago = query - key + rows - columns
    if LONG:
        if (query - key < KEYS - 1) | (query - key + QUERIES > window):
            x = tl.where((ago >= 0) & (ago < window), x, unseen)
    else:
        x = tl.where((ago >= 0) & (ago < window), x, unseen)
    return x


@triton.jit(do_not_specialize=["T", "S", "H", "window", "threshold"])
def forward_kernel(
    q, k, v, seeds, o, log_sum, T, S, H, window, scale, threshold, rise, each,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h,
    D: tl.constexpr, DROPOUT: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
    LONG: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(T, QUERIES)
    first = tl.program_id(0) % blocks * QUERIES
    row = tl.program_id(0) // blocks
    head, batch = row % H, (row // H).to(tl.int64)
    rows, columns, dims = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    query = _tile(q + batch * q_b + head * q_h, first, rows, T, q_t, dims, D)
    position = first + S - T + rows
    if DROPOUT:
        numbers = _of_queries(tl.load(seeds + batch // each), row, position)[:, None]
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, WIDTH], tl.float32)
    begin = tl.maximum(first + S - T - window + 1, 0) // KEYS * KEYS
    for start in range(begin, tl.minimum(first + QUERIES, T) + S - T, KEYS):
        key = _tile(k, start, columns, S, k_t, dims, D)
        value = _tile(v, start, columns, S, v_t, dims, D)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = _seen(
            scores, float("-inf"), first + S - T, rows[:, None], start, columns[None, :], window, QUERIES, KEYS, LONG
        )
        new = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # nothing seen yet
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        if DROPOUT:
            p = tl.where(_kept(numbers, _of_keys(start + columns)[None, :], threshold), p, 0.0)
        acc = tl.dot(p.to(value.dtype), value, acc * shrink[:, None], input_precision="ieee")
        top = new
    if DROPOUT:
        acc *= rise
    _put(o + (batch * T * H + head) * D, acc / total[:, None], first, rows, T, H * D, dims, D)
    tl.store(log_sum + (batch * H + head) * T + first + rows, top + tl.log2(total), mask=first + rows < T)


@triton.jit(do_not_specialize=["T", "H", "window", "threshold"])
def whole_kernel(
    q, k, v, seeds, grad, by_q, by_k, by_v, T, H, window, scale, back, threshold, rise, each,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h, out_t,
    D: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """All gradients of a head of at most ROWS tokens. The sums of weights come from the weights again, as does
    grad . o, so neither is read."""
    row = tl.program_id(0)
    head, batch = row % H, (row // H).to(tl.int64)
    rows, dims = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    query = _tile(q + batch * q_b + head * q_h, 0, rows, T, q_t, dims, D)
    key = _tile(k + batch * k_b + head * k_h, 0, rows, T, k_t, dims, D)
    value = _tile(v + batch * v_b + head * v_h, 0, rows, T, v_t, dims, D)
    g = _tile(grad + batch * g_b + head * g_h, 0, rows, T, g_t, dims, D)
    ago = rows[:, None] - rows[None, :]
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where((ago >= 0) & (ago < window), scores, float("-inf"))
    p = tl.exp2(scores - tl.max(scores, 1)[:, None])
    p *= (1.0 / tl.sum(p, 1))[:, None]
    slope = tl.dot(g, tl.trans(value), input_precision="ieee")
    if DROPOUT:
        numbers = _of_queries(tl.load(seeds + batch // each), row, rows)[:, None]
        kept = tl.where(_kept(numbers, _of_keys(rows)[None, :], threshold), rise, 0.0)
        slope *= kept
        shown = (p * kept).to(g.dtype)
    else:
        shown = p.to(g.dtype)
    at = batch * T * out_t + head * D
    _put(by_v + at, tl.dot(tl.trans(shown), g, input_precision="ieee"), 0, rows, T, out_t, dims, D)
    slope = (p * (slope - tl.sum(p * slope, 1)[:, None])).to(g.dtype)
    _put(by_q + at, tl.dot(slope, key, input_precision="ieee") * back, 0, rows, T, out_t, dims, D)
    _put(by_k + at, tl.dot(tl.trans(slope), query, input_precision="ieee") * back, 0, rows, T, out_t, dims, D)


@triton.jit(do_not_specialize=["T", "S", "H", "window", "threshold"])
def query_kernel(
    q, k, v, seeds, o, grad, log_sum, by_q, delta, drawn, T, S, H, window, scale, back, threshold, rise, each,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h, out_t,
    D: tl.constexpr, DROPOUT: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
    LONG: tl.constexpr,
):  # fmt: skip
    """by_q; and what the kernel of the keys needs, delta = grad . o of each query, and its random number."""
    blocks = tl.cdiv(T, QUERIES)
    first = tl.program_id(0) % blocks * QUERIES
    row = tl.program_id(0) // blocks
    head, batch = row % H, (row // H).to(tl.int64)
    rows, columns, dims = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    query = _tile(q + batch * q_b + head * q_h, first, rows, T, q_t, dims, D)
    g = _tile(grad + batch * g_b + head * g_h, first, rows, T, g_t, dims, D)
    out = _tile(o + (batch * T * H + head) * D, first, rows, T, H * D, dims, D)
    own = tl.sum(g.to(tl.float32) * out.to(tl.float32), 1)
    there = first + rows < T
    log_sum += (batch * H + head) * T + first
    tl.store(delta + (batch * H + head) * T + first + rows, own, mask=there)
    bound = tl.load(log_sum + rows, mask=there, other=float("inf"))
    if DROPOUT:
        number = _of_queries(tl.load(seeds + batch // each), row, first + S - T + rows)
        tl.store(drawn + (batch * H + head) * T + first + rows, number.to(tl.int32, bitcast=True), mask=there)
    acc = tl.zeros([QUERIES, WIDTH], tl.float32)
    begin = tl.maximum(first + S - T - window + 1, 0) // KEYS * KEYS
    for start in range(begin, tl.minimum(first + QUERIES, T) + S - T, KEYS):
        key = _tile(k, start, columns, S, k_t, dims, D)
        value = _tile(v, start, columns, S, v_t, dims, D)
        p = tl.exp2(tl.dot(query, tl.trans(key), input_precision="ieee") * scale - bound[:, None])
        p = _seen(p, 0.0, first + S - T, rows[:, None], start, columns[None, :], window, QUERIES, KEYS, LONG)
        slope = tl.dot(g, tl.trans(value), input_precision="ieee")
        if DROPOUT:
            kept = _kept(number[:, None], _of_keys(start + columns)[None, :], threshold)
            slope = tl.where(kept, slope, 0.0) * rise
        slope = p * (slope - own[:, None])
        acc = tl.dot(slope.to(key.dtype), key, acc, input_precision="ieee")
    _put(by_q + batch * T * out_t + head * D, acc * back, first, rows, T, out_t, dims, D)


@triton.jit(do_not_specialize=["T", "S", "H", "window", "threshold"])
def key_kernel(
    q, k, v, drawn, grad, log_sum, delta, by_k, by_v, T, S, H, window, scale, back, threshold, rise, each,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h, out_t,
    D: tl.constexpr, DROPOUT: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
    LONG: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(S, KEYS)
    first = tl.program_id(0) % blocks * KEYS
    row = tl.program_id(0) // blocks
    head, batch = row % H, (row // H).to(tl.int64)
    rows, columns, dims = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    q += batch * q_b + head * q_h
    grad += batch * g_b + head * g_h
    log_sum += (batch * H + head) * T
    delta += (batch * H + head) * T
    key = _tile(k + batch * k_b + head * k_h, first, columns, S, k_t, dims, D)
    value = _tile(v + batch * v_b + head * v_h, first, columns, S, v_t, dims, D)
    drawn += (batch * H + head) * T
    of_keys = _of_keys(first + columns)[:, None]
    of_key = tl.zeros([KEYS, WIDTH], tl.float32)
    of_value = tl.zeros([KEYS, WIDTH], tl.float32)
    begin = tl.maximum(first - (S - T), 0)  # the query at the first key
    for start in range(begin, tl.minimum(first + KEYS - 1 + window - (S - T), T), QUERIES):
        query = _tile(q, start, rows, T, q_t, dims, D)
        g = _tile(grad, start, rows, T, g_t, dims, D)
        there = start + rows < T
        bound = tl.load(log_sum + start + rows, mask=there, other=float("inf"))
        own = tl.load(delta + start + rows, mask=there, other=0.0)
        p = tl.exp2(tl.dot(key, tl.trans(query), input_precision="ieee") * scale - bound[None, :])
        p = _seen(p, 0.0, start + S - T, rows[None, :], first, columns[:, None], window, QUERIES, KEYS, LONG)
        slope = tl.dot(value, tl.trans(g), input_precision="ieee")
        if DROPOUT:
            number = tl.load(drawn + start + rows, mask=there, other=0).to(tl.uint32, bitcast=True)
            kept = tl.where(_kept(number[None, :], of_keys, threshold), rise, 0.0)
            slope *= kept
            of_value = tl.dot((p * kept).to(g.dtype), g, of_value, input_precision="ieee")
        else:
            of_value = tl.dot(p.to(g.dtype), g, of_value, input_precision="ieee")
        slope = p * (slope - own[None, :])
        of_key = tl.dot(slope.to(query.dtype), query, of_key, input_precision="ieee")
    at = batch * S * out_t + head * D
    _put(by_k + at, of_key * back, first, columns, S, out_t, dims, D)
    _put(by_v + at, of_value, first, columns, S, out_t, dims, D)


@triton.jit
def kept_kernel(seeds, out, T, S, H, threshold, each, ROWS: tl.constexpr, KEYS: tl.constexpr):
    row = tl.program_id(0)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, KEYS)
    seed = tl.load(seeds + (row // H).to(tl.int64) // each)
    kept = _kept(_of_queries(seed, row, rows + S - T)[:, None], _of_keys(columns)[None, :], threshold)
    there = (rows < T)[:, None] & (columns < S)[None, :]
    tl.store(out + row.to(tl.int64) * T * S + rows[:, None] * S + columns[None, :], kept.to(tl.int8), mask=there)
