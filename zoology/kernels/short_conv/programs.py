"""The Triton kernels of the causal depthwise convolution: forward, all gradients, and one step.

Memory bounds this op, so each pass reads its inputs and writes its outputs once. A sequence's times are cut into
segments of a few dozen tokens. A program walks some segments at a time, of some channels, token by token, and keeps in
its registers the last k tokens that it read: a token is read once, but for the k - 1 where two segments meet. It reads
several tokens before it computes with the first, as a walk that reads one at a time waits for memory at each.

The backward pass has one kernel for all gradients, as they share dy: with dx_t = sum_j w_j dy_{t+j}, the same tokens
give dw_j = sum_t dy_{t+j} x_t, of which a thread keeps its own until the end. A state's gradient is dx before 0,
and takes no dy but those that the walk of a first segment begins with. Each program's sums are written,
and added in order afterwards. No atomics: the same numbers in every run.

Letters: R replicas, B batch, T time, D channels, k taps; j is how long ago the token was that a tap reads.
"""

import triton
import triton.language as tl


@triton.jit
def place(B, T, segments, length, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """This program's channels, its tile of all replicas' tiles and its replica; and of its rows the sequence of the
    batch, the time where the segment begins, and the tokens from there to the sequence's end."""
    parts, tiles = tl.cdiv(D, WIDTH), tl.cdiv(B * segments, ROWS)
    dims = tl.program_id(0) % parts * WIDTH + tl.arange(0, WIDTH)
    tile = tl.program_id(0) // parts
    row = tile % tiles * ROWS + tl.arange(0, ROWS)
    batch = row // segments
    begin = (row - batch * segments) * length
    left = tl.where(batch < B, T - begin, 0)
    return dims, tile.to(tl.int64), (tile // tiles).to(tl.int64), batch.to(tl.int64), begin.to(tl.int64), left


@triton.jit(do_not_specialize=["B", "T", "segments", "length"])
def short_conv_kernel(
    x, weight, bias, state, y, B, T, segments, length, x_r, x_b, x_t, w_r, b_r,
    D: tl.constexpr, TAPS: tl.constexpr, STATE: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    dims, _, replica, batch, begin, left = place(B, T, segments, length, D, ROWS, WIDTH)
    sequence = replica * B + batch
    wide = (dims < D)[None, :]
    # Of a few tokens, offsets fit 32 bits; where they begin does not.
    x += (replica * x_r + batch * x_b + begin * x_t)[:, None] + dims[None, :]
    y += ((sequence * T + begin) * D)[:, None] + dims[None, :]
    state += ((sequence * (TAPS - 1) + begin) * D)[:, None] + dims[None, :]
    weight += replica * w_r + dims * TAPS
    # What warps exchange, as they do taps, they wait for: all is read before the first is made float32.
    read_taps, taps, window = (), (), ()  # tuples grow by +: Triton unpacks none
    for j in tl.static_range(TAPS):
        read_taps = read_taps + (tl.load(weight + TAPS - 1 - j, mask=dims < D, other=0.0),)  # noqa: RUF005
    if BIAS:
        read_bias = tl.load(bias + replica * b_r + dims, mask=dims < D, other=0.0)
    for j in tl.static_range(1, TAPS):
        past = tl.load(x - j * x_t, mask=((begin >= j) & (left > 0))[:, None] & wide, other=0.0).to(tl.float32)
        if STATE:
            before = ((begin < j) & (left > 0))[:, None] & wide
            past = tl.where(before, tl.load(state + (TAPS - 1 - j) * D, mask=before, other=0.0).to(tl.float32), past)
        window = window + (past,)  # noqa: RUF005
    for j in tl.static_range(TAPS):
        taps = taps + (read_taps[j].to(tl.float32)[None, :],)  # noqa: RUF005
    start = tl.zeros([ROWS, WIDTH], tl.float32)
    if BIAS:
        start += read_bias.to(tl.float32)[None, :]
    for first in range(0, length, UNROLL):
        read = ()
        for i in tl.static_range(UNROLL):
            now = tl.load(x + i * x_t, mask=(first + i < left)[:, None] & wide, other=0.0)
            read = read + (now,)  # noqa: RUF005
        for i in tl.static_range(UNROLL):
            seen = (read[i].to(tl.float32),) + window  # noqa: RUF005
            acc = start
            for j in tl.static_range(TAPS):
                acc += taps[j] * seen[j]
            tl.store(y + i * D, acc, mask=(first + i < left)[:, None] & wide)
            window = seen[: TAPS - 1]
        x += UNROLL * x_t
        y += UNROLL * D


@triton.jit(do_not_specialize=["B", "T", "segments", "length"])
def short_conv_gradient_kernel(
    grad, x, weight, state, by_x, by_state, sums, B, T, segments, length, g_r, g_b, g_t, x_r, x_b, x_t, w_r,
    D: tl.constexpr, TAPS: tl.constexpr, STATE: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    SLOTS: tl.constexpr = TAPS + 1 if BIAS else TAPS
    dims, tile, replica, batch, begin, left = place(B, T, segments, length, D, ROWS, WIDTH)
    sequence = replica * B + batch
    wide = (dims < D)[None, :]
    # Of a few tokens, offsets fit 32 bits; where they begin does not.
    grad += (replica * g_r + batch * g_b + begin * g_t)[:, None] + dims[None, :]
    x += (replica * x_r + batch * x_b + begin * x_t)[:, None] + dims[None, :]
    by_x += ((sequence * T + begin) * D)[:, None] + dims[None, :]
    weight += replica * w_r + dims * TAPS
    zero = tl.zeros([ROWS, WIDTH], tl.float32)
    # What warps exchange, as they do taps, they wait for: all is read before the first is made float32.
    read_taps, taps, window, by_taps, by_bias = (), (), (), (), zero  # tuples grow by +: Triton unpacks none
    for j in tl.static_range(TAPS):
        read_taps = read_taps + (tl.load(weight + TAPS - 1 - j, mask=dims < D, other=0.0),)  # noqa: RUF005
        by_taps = by_taps + (zero,)  # noqa: RUF005
    for j in tl.static_range(TAPS - 1):
        later = tl.load(grad + j * g_t, mask=(j < left)[:, None] & wide, other=0.0)
        window = window + (later.to(tl.float32),)  # noqa: RUF005
    for j in tl.static_range(TAPS):
        taps = taps + (read_taps[j].to(tl.float32)[None, :],)  # noqa: RUF005
    if STATE:
        # A sequence's first segment has the state's tokens too: of what they reach, dy before 0 is 0, the rest is here.
        before = ((begin == 0) & (left > 0))[:, None] & wide
        kept = (sequence * ((TAPS - 1) * D))[:, None] + dims[None, :]
        for i in tl.static_range(TAPS - 1):
            old = tl.load(state + i * D + kept, mask=before, other=0.0).to(tl.float32)
            by_old, sums_before = zero, ()
            for j in tl.static_range(TAPS):
                if i + j < TAPS - 1:
                    sums_before = sums_before + (by_taps[j],)  # noqa: RUF005
                else:
                    by_old += taps[j] * window[i + j - TAPS + 1]
                    sums_before = sums_before + (by_taps[j] + window[i + j - TAPS + 1] * old,)  # noqa: RUF005
            by_taps = sums_before
            tl.store(by_state + i * D + kept, by_old, mask=before)
    grad += (TAPS - 1) * g_t
    for first in range(0, length, UNROLL):
        read, owns = (), ()
        for i in tl.static_range(UNROLL):
            g = tl.load(grad + i * g_t, mask=(first + i + TAPS - 1 < left)[:, None] & wide, other=0.0)
            own = tl.load(x + i * x_t, mask=(first + i < left)[:, None] & wide, other=0.0)
            read, owns = read + (g,), owns + (own,)  # noqa: RUF005
        for i in tl.static_range(UNROLL):
            seen = window + (read[i].to(tl.float32),)  # noqa: RUF005
            own = owns[i].to(tl.float32)
            out, sums_of = zero, ()
            for j in tl.static_range(TAPS):
                out += taps[j] * seen[j]
                sums_of = sums_of + (by_taps[j] + seen[j] * own,)  # noqa: RUF005
            by_taps = sums_of
            if BIAS:
                by_bias += seen[0]
            tl.store(by_x + i * D, out, mask=(first + i < left)[:, None] & wide)
            window = seen[1:]
        grad += UNROLL * g_t
        x += UNROLL * x_t
        by_x += UNROLL * D
    sums += (tile * D + dims) * SLOTS
    for j in tl.static_range(TAPS):
        tl.store(sums + TAPS - 1 - j, tl.sum(by_taps[j], 0), mask=dims < D)
    if BIAS:
        tl.store(sums + TAPS, tl.sum(by_bias, 0), mask=dims < D)


@triton.jit(do_not_specialize=["B"])
def short_conv_step_kernel(
    x, weight, bias, state, y, after, B, x_r, x_b, w_r, b_r,
    D: tl.constexpr, TAPS: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    parts, blocks = tl.cdiv(D, WIDTH), tl.cdiv(B, ROWS)
    dims = tl.program_id(0) % parts * WIDTH + tl.arange(0, WIDTH)
    replica = (tl.program_id(0) // parts // blocks).to(tl.int64)
    batch = (tl.program_id(0) // parts % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = (batch < B)[:, None] & (dims < D)[None, :]
    row = replica * B + batch
    now = tl.load(x + replica * x_r + batch[:, None] * x_b + dims[None, :], mask=there, other=0.0)
    weight += replica * w_r + dims * TAPS
    acc = tl.load(weight + TAPS - 1, mask=dims < D, other=0.0).to(tl.float32)[None, :] * now.to(tl.float32)
    if BIAS:
        acc += tl.load(bias + replica * b_r + dims, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    at = row[:, None] * ((TAPS - 1) * D) + dims[None, :]
    for i in tl.static_range(TAPS - 1):
        kept = tl.load(state + at + i * D, mask=there, other=0.0)
        acc += tl.load(weight + i, mask=dims < D, other=0.0).to(tl.float32)[None, :] * kept.to(tl.float32)
        if i > 0:
            tl.store(after + at + (i - 1) * D, kept, mask=there)
    if TAPS > 1:
        tl.store(after + at + (TAPS - 2) * D, now, mask=there)
    tl.store(y + row[:, None] * D + dims[None, :], acc, mask=there)
