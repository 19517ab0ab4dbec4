"""The Triton kernels of the selective scan: a walk along the tokens, and one back.

A program has some channels of one sequence and their states, (channels, N), in its registers, and walks from token to
token: products and an exponential for each number of a state, and no number of it in memory. It reads a chunk of tokens
before it computes with the first, as a walk that reads one at a time waits for memory at each. B and C are read for
each channel anew, as vectors and from the nearest cache, for threads need not exchange them then.

For the backward pass the walk leaves the states before each chunk. The walk back makes a chunk's states from them anew,
all at once in its registers, and then goes through them from the last. Channels share B and C: what each program has of
their gradients is written apart and added afterwards, in order, as are the sums over sequences. No atomics: the same
numbers in every run.

Letters: R replicas, B batch (and the input map, as in the paper: b in names here), T time, E channels, N d_state.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _place(B, E, N, STATES: tl.constexpr, WIDTH: tl.constexpr):
    """This program's sequence, counted over all replicas, its replica and sequence of the batch; its block of channels,
    the channels, the numbers of a state; and which of both there are."""
    blocks = tl.cdiv(E, WIDTH)
    block = tl.program_id(0) % blocks
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    dims, n = block * WIDTH + tl.arange(0, WIDTH), tl.arange(0, STATES)
    both = (dims < E)[:, None] & (n < N)[None, :]
    return sequence, sequence // B, sequence % B, block, dims, n, both


@triton.jit
def _read(at, both, WHOLE: tl.constexpr):
    """Numbers (channels, N); a mask would keep them from being read as vectors."""
    if WHOLE:
        return tl.load(at).to(tl.float32)
    else:  # noqa: RET505 (a constexpr decides)
        return tl.load(at, mask=both, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["B", "T"])
def selective_scan_kernel(
    x, delta, A, b, c, D, state, y, last, kept, B, T, E, N, x_r, x_b, x_t, d_r, d_b, d_t,
    STATES: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr,
    SKIP: tl.constexpr, STATE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """b and c lie dense. WHOLE: all programs have all their channels, and states all their numbers."""
    sequence, replica, batch, _, dims, n, both = _place(B, E, N, STATES, WIDTH)
    each = n[None, :] + tl.zeros([WIDTH, STATES], tl.int32)
    of_state = dims[:, None] * N + n[None, :]
    x += replica * x_r + batch * x_b + dims
    delta += replica * d_r + batch * d_b + dims
    b += sequence * T * N
    c += sequence * T * N
    y += sequence * T * E + dims
    a = _read(A + replica * E * N + of_state, both, WHOLE) * LOG2E
    h = tl.zeros([WIDTH, STATES], tl.float32)
    if STATE:
        h += _read(state + sequence * E * N + of_state, both, WHOLE)
    if SKIP:
        skip = tl.load(D + replica * E + dims, mask=dims < E, other=0.0).to(tl.float32)
    kept += sequence * tl.cdiv(T, CHUNK) * E * N + of_state
    for first in range(0, T, CHUNK):
        if KEEP:
            tl.store(kept, h, mask=both)
            kept += E * N
        left = tl.where(dims < E, T - first, 0)  # tokens, of each channel that there is
        inputs, steps, into, out_of = (), (), (), ()  # tuples grow by +: Triton unpacks none
        for i in tl.static_range(CHUNK):
            # Beyond the end a step is 0, which leaves a state as it is, and the last token's b and c are read.
            inputs = inputs + (tl.load(x + i * x_t, mask=left > i, other=0.0),)  # noqa: RUF005
            steps = steps + (tl.load(delta + i * d_t, mask=left > i, other=0.0),)  # noqa: RUF005
            token = tl.minimum(first + i, T - 1).to(tl.int64) * N
            into = into + (_read(b + token + each, both, WHOLE),)  # noqa: RUF005
            out_of = out_of + (_read(c + token + each, both, WHOLE),)  # noqa: RUF005
        for i in tl.static_range(CHUNK):
            u, dt = inputs[i].to(tl.float32), steps[i].to(tl.float32)
            h = tl.exp2(dt[:, None] * a) * h + (dt * u)[:, None] * into[i]
            out = tl.sum(h * out_of[i], 1)
            if SKIP:
                out += skip * u
            tl.store(y + i * E, out, mask=left > i)
        x += CHUNK * x_t
        delta += CHUNK * d_t
        y += CHUNK * E
    tl.store(last + sequence * E * N + of_state, h, mask=both)


@triton.jit(do_not_specialize=["B", "T"])
def selective_scan_gradient_kernel(
    grad, by_last, x, delta, A, b, c, D, kept, by_x, by_delta, by_a, by_b, by_c, by_d, by_state, B, T, E, N,
    g_r, g_b, g_t, x_r, x_b, x_t, d_r, d_b, d_t,
    STATES: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr,
    SKIP: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """by_a (R, B, E, N) and by_d (R, B, E) of each sequence, by_b and by_c (blocks, R, B, T, N) of each block of
    channels."""
    sequence, replica, batch, block, dims, n, both = _place(B, E, N, STATES, WIDTH)
    each = n[None, :] + tl.zeros([WIDTH, STATES], tl.int32)
    of_state = dims[:, None] * N + n[None, :]
    chunks = tl.cdiv(T, CHUNK)
    end = (chunks - 1) * CHUNK  # where the last chunk begins
    grad += replica * g_r + batch * g_b + end * g_t + dims
    x += replica * x_r + batch * x_b + end * x_t + dims
    delta += replica * d_r + batch * d_b + end * d_t + dims
    b += sequence * T * N
    c += sequence * T * N
    by_x += (sequence * T + end) * E + dims
    by_delta += (sequence * T + end) * E + dims
    sequences = tl.num_programs(0) // tl.cdiv(E, WIDTH)
    of_block = ((block.to(tl.int64) * sequences + sequence) * T + end) * N + n
    by_b += of_block
    by_c += of_block
    a = _read(A + replica * E * N + of_state, both, WHOLE) * LOG2E
    pull = tl.zeros([WIDTH, STATES], tl.float32)
    if LAST:
        pull += _read(by_last + sequence * E * N + of_state, both, WHOLE)
    if SKIP:
        skip = tl.load(D + replica * E + dims, mask=dims < E, other=0.0).to(tl.float32)
    of_a, of_d = tl.zeros([WIDTH, STATES], tl.float32), tl.zeros([WIDTH], tl.float32)
    kept += (sequence * chunks + chunks - 1) * E * N + of_state
    for before_end in range(0, T, CHUNK):
        first = end - before_end
        # Tokens, of each channel and each number of a state that there is.
        left, few = tl.where(dims < E, T - first, 0), tl.where(n < N, T - first, 0)
        inputs, steps, pulls, into, out_of, states = (), (), (), (), (), ()  # tuples grow by +: Triton unpacks none
        for i in tl.static_range(CHUNK):
            # Beyond the end a step is 0, which leaves a state as it is, and the last token's b and c are read.
            inputs = inputs + (tl.load(x + i * x_t, mask=left > i, other=0.0),)  # noqa: RUF005
            steps = steps + (tl.load(delta + i * d_t, mask=left > i, other=0.0),)  # noqa: RUF005
            pulls = pulls + (tl.load(grad + i * g_t, mask=left > i, other=0.0),)  # noqa: RUF005
            token = tl.minimum(first + i, T - 1).to(tl.int64) * N
            into = into + (b + token + each,)  # noqa: RUF005
            out_of = out_of + (c + token + each,)  # noqa: RUF005
        h = _read(kept, both, WHOLE)
        for i in tl.static_range(CHUNK):
            states = states + (h,)  # noqa: RUF005
            u, dt = inputs[i].to(tl.float32), steps[i].to(tl.float32)
            h = tl.exp2(dt[:, None] * a) * h + (dt * u)[:, None] * _read(into[i], both, WHOLE)
        for i in tl.static_range(CHUNK - 1, -1, -1):
            u, dt, g = inputs[i].to(tl.float32), steps[i].to(tl.float32), pulls[i].to(tl.float32)
            pull += _read(out_of[i], both, WHOLE) * g[:, None]
            tl.store(by_c + i * N, tl.sum(h * g[:, None], 0), mask=few > i)
            tl.store(by_b + i * N, tl.sum(pull * (dt * u)[:, None], 0), mask=few > i)
            of_input = tl.sum(pull * _read(into[i], both, WHOLE), 1)
            h = states[i]
            pull *= tl.exp2(dt[:, None] * a)
            of_log = pull * h
            of_a += of_log * dt[:, None]
            of_step = of_input * u + tl.sum(of_log * a, 1) * LN2
            of_x = of_input * dt
            if SKIP:
                of_x += skip * g
                of_d += u * g
            tl.store(by_x + i * E, of_x, mask=left > i)
            tl.store(by_delta + i * E, of_step, mask=left > i)
        grad -= CHUNK * g_t
        x -= CHUNK * x_t
        delta -= CHUNK * d_t
        by_x -= CHUNK * E
        by_delta -= CHUNK * E
        by_b -= CHUNK * N
        by_c -= CHUNK * N
        kept -= E * N
    of_state += sequence * E * N
    tl.store(by_a + of_state, of_a, mask=both)
    tl.store(by_state + of_state, pull, mask=both)
    if SKIP:
        tl.store(by_d + sequence * E + dims, of_d, mask=dims < E)
