"""The Triton kernels of the gated short convolution, of what stands around the product with the gate's weight.

They walk a sequence as those of `short_conv` do, whose `programs` says how and why, and read the product beside x. So
what the gate multiplies, what is added, and in the backward pass both factors' gradients and the sums over all tokens,
are made in the one pass over memory that the convolution takes in any case.

Letters: R replicas, B batch, T time, D channels, k taps; j is how long ago the token was that a tap reads; z is the
gate's product, without its bias, and g the gradient of y.
"""

import triton
import triton.language as tl

from zoology.kernels.short_conv.programs import place


@triton.jit(do_not_specialize=["B", "T", "segments", "length"])
def gated_short_conv_kernel(
    x, z, weight, bias, gate_bias, y, B, T, segments, length, x_r, x_b, x_t, w_r, b_r, c_r,
    D: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    dims, _, replica, batch, begin, left = place(B, T, segments, length, D, ROWS, WIDTH)
    wide = (dims < D)[None, :]
    # Of a few tokens, offsets fit 32 bits; where they begin does not.
    x += (replica * x_r + batch * x_b + begin * x_t)[:, None] + dims[None, :]
    here = (((replica * B + batch) * T + begin) * D)[:, None] + dims[None, :]
    z += here
    y += here
    weight += replica * w_r + dims * TAPS
    taps, window = (), ()  # tuples grow by +: Triton unpacks none
    for j in tl.static_range(1, TAPS):
        past = tl.load(x - j * x_t, mask=((begin >= j) & (left > 0))[:, None] & wide, other=0.0)
        window = window + (past.to(tl.float32),)  # noqa: RUF005
    for j in tl.static_range(TAPS):
        tap = tl.load(weight + TAPS - 1 - j, mask=dims < D, other=0.0).to(tl.float32)
        taps = taps + (tap[None, :],)  # noqa: RUF005
    start = tl.load(bias + replica * b_r + dims, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    open_gate = tl.load(gate_bias + replica * c_r + dims, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    for first in range(0, length, UNROLL):
        read, gates = (), ()
        for i in tl.static_range(UNROLL):
            there = (first + i < left)[:, None] & wide
            read = read + (tl.load(x + i * x_t, mask=there, other=0.0),)  # noqa: RUF005
            gates = gates + (tl.load(z + i * D, mask=there, other=0.0),)  # noqa: RUF005
        for i in tl.static_range(UNROLL):
            seen = (read[i].to(tl.float32),) + window  # noqa: RUF005
            acc = tl.zeros([ROWS, WIDTH], tl.float32) + start
            for j in tl.static_range(TAPS):
                acc += taps[j] * seen[j]
            acc = seen[0] + acc * (gates[i].to(tl.float32) + open_gate)
            tl.store(y + i * D, acc, mask=(first + i < left)[:, None] & wide)
            window = seen[: TAPS - 1]
        x += UNROLL * x_t
        y += UNROLL * D
        z += UNROLL * D


@triton.jit(do_not_specialize=["B", "T", "segments", "length"])
def gated_short_conv_gradient_kernel(
    grad, x, z, weight, bias, gate_bias, by_x, by_z, sums,
    B, T, segments, length, g_r, g_b, g_t, x_r, x_b, x_t, w_r, b_r, c_r,
    D: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """by_x without what it has through z; by_z; and of each tile the sums over its tokens that are the gradients, for
    each channel, of the taps, of the bias and of the gate's bias."""
    dims, tile, replica, batch, begin, left = place(B, T, segments, length, D, ROWS, WIDTH)
    wide = (dims < D)[None, :]
    # Of a few tokens, offsets fit 32 bits; where they begin does not.
    grad += (replica * g_r + batch * g_b + begin * g_t)[:, None] + dims[None, :]
    x += (replica * x_r + batch * x_b + begin * x_t)[:, None] + dims[None, :]
    here = (((replica * B + batch) * T + begin) * D)[:, None] + dims[None, :]
    z += here
    by_x += here
    by_z += here
    weight += replica * w_r + dims * TAPS
    zero = tl.zeros([ROWS, WIDTH], tl.float32)
    taps, by_taps, by_bias, by_open = (), (), zero, zero  # tuples grow by +: Triton unpacks none
    for j in tl.static_range(TAPS):
        tap = tl.load(weight + TAPS - 1 - j, mask=dims < D, other=0.0).to(tl.float32)
        taps = taps + (tap[None, :],)  # noqa: RUF005
        by_taps = by_taps + (zero,)  # noqa: RUF005
    start = tl.load(bias + replica * b_r + dims, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    open_gate = tl.load(gate_bias + replica * c_r + dims, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    # Three windows: g, and g times the gate, of this token and the k - 1 after it, the newest of which a round reads;
    # and the k - 1 inputs before it.
    given, gated, window = (), (), ()
    for j in tl.static_range(TAPS - 1):
        there = (j < left)[:, None] & wide
        g = tl.load(grad + j * g_t, mask=there, other=0.0)
        gate = tl.load(z + j * D, mask=there, other=0.0).to(tl.float32) + open_gate
        given, gated = given + (g,), gated + (g.to(tl.float32) * gate,)  # noqa: RUF005
    for j in tl.static_range(1, TAPS):
        past = tl.load(x - j * x_t, mask=((begin >= j) & (left > 0))[:, None] & wide, other=0.0)
        window = window + (past.to(tl.float32),)  # noqa: RUF005
    grad += (TAPS - 1) * g_t
    z += (TAPS - 1) * D
    for first in range(0, length, UNROLL):
        read, gates, owns = (), (), ()
        for i in tl.static_range(UNROLL):
            later = (first + i + TAPS - 1 < left)[:, None] & wide
            read = read + (tl.load(grad + i * g_t, mask=later, other=0.0),)  # noqa: RUF005
            gates = gates + (tl.load(z + i * D, mask=later, other=0.0),)  # noqa: RUF005
            owns = owns + (tl.load(x + i * x_t, mask=(first + i < left)[:, None] & wide, other=0.0),)  # noqa: RUF005
        for i in tl.static_range(UNROLL):
            there = (first + i < left)[:, None] & wide
            given = given + (read[i],)  # noqa: RUF005
            gated = gated + (read[i].to(tl.float32) * (gates[i].to(tl.float32) + open_gate),)  # noqa: RUF005
            seen = (owns[i].to(tl.float32),) + window  # noqa: RUF005
            own = given[0].to(tl.float32)
            out, convolved, sums_of = own, zero + start, ()
            for j in tl.static_range(TAPS):
                out += taps[j] * gated[j]
                convolved += taps[j] * seen[j]
                sums_of = sums_of + (by_taps[j] + gated[j] * seen[0],)  # noqa: RUF005
            by_taps = sums_of
            by_bias += gated[0]
            by_open += own * convolved
            tl.store(by_x + i * D, out, mask=there)
            tl.store(by_z + i * D, own * convolved, mask=there)
            given, gated, window = given[1:], gated[1:], seen[: TAPS - 1]
        grad += UNROLL * g_t
        x += UNROLL * x_t
        z += UNROLL * D
        by_x += UNROLL * D
        by_z += UNROLL * D
    sums += (tile * D + dims) * (TAPS + 2)
    for j in tl.static_range(TAPS):
        tl.store(sums + TAPS - 1 - j, tl.sum(by_taps[j], 0), mask=dims < D)
    tl.store(sums + TAPS, tl.sum(by_bias, 0), mask=dims < D)
    tl.store(sums + TAPS + 1, tl.sum(by_open, 0), mask=dims < D)
