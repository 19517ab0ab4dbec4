"""The Triton kernels of the cross-entropy of a tied head.

The forward pass is FlashAttention's with keys = values = weight: blocks of rows meet blocks of the vocabulary, and
beside the sum of exp(logit - the target's) it sums pull_m = sum_v p_v w_v - w_t, the gradient of the loss by the hidden
row. So the backward pass of `hidden` is one product with the upstream gradient, and the logits are made twice in all,
not three times: the limits of this op are exponentials (16 a clock and multiprocessor), instructions and the matrix
units, at par. The target's own column is left out of the sums: its share, p_t - 1 = -(the others' share), keeps its
digits where p_t is near 1. Where a sum comes near float32's end, or a logit is the target's to the bit, which is rare,
a second kernel goes over the block of rows again, with the softmax online and a look at the lower ids: apart, as common
code would lose the registers that rare code takes. In float16, whose numbers end early, it does all blocks.

The gradient of `weight` has programs of (block of the vocabulary, piece of the rows), each of which goes over its rows
in order; pieces are added in float32 in a second pass. No atomics: the same numbers in every run. What a row's target
gives is summed apart, id by id as an embedding's gradient is: no program looks for targets, and what rounding to 16
bits takes from p_t near 1 is given back there.

Letters: R replicas, M rows, V vocabulary, D width.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
FAR = tl.constexpr(2.0**100)
"""Sums below this leave room for the products with them in float32."""


@triton.jit
def either(a, b):
    return a | b


@triton.jit
def weights_at(at, column, dims, V, D: tl.constexpr, WHOLE: tl.constexpr):
    """The weights of some ids, (IDS, WIDTH), from their addresses; a mask costs as much as the address does."""
    if WHOLE:
        w = tl.load(at, mask=(dims < D)[None, :], other=0.0)
    else:
        w = tl.load(at, mask=(column < V)[:, None] & (dims < D)[None, :], other=0.0)
    return w


@triton.jit
def own_logits(
    h, weight, targets, first_row, M, V,
    D: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, WIDTH: tl.constexpr, SOME,
):  # fmt: skip
    """(ROWS,): each row's logit of its target, by the same product as all others, so that equal ones are equal to the
    bit; 0 unless SOME row is labelled."""
    ids, dims = tl.arange(0, IDS), tl.arange(0, WIDTH)
    label = tl.zeros([ROWS], tl.float32)
    for first in range(0, tl.where(SOME, ROWS, 0), IDS):
        # Row first + i of the block has its target's weights in column i.
        at = first_row + first + ids
        own = tl.load(targets + at, mask=at < M, other=-1)
        known = (own >= 0) & (own < V)
        w = tl.load(weight + own[:, None] * D + dims[None, :], mask=known[:, None] & (dims < D)[None, :], other=0.0)
        scores = tl.dot(h, tl.trans(w), input_precision="ieee")
        label += tl.sum(tl.where(ids[None, :] == (tl.arange(0, ROWS) - first)[:, None], scores, 0.0), 1)
    return label


@triton.jit
def begin(
    hidden, weight, targets, M, V, stride_h, stride_w, stride_t, ignore_index,
    D: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The rows of a program: its replica, whose weight and targets follow; the rows, which of them there are, their
    targets, which are labelled, whether any is, as a block with no label at all has nothing to do; their hidden vectors
    and their targets' logits."""
    blocks = tl.cdiv(M, ROWS)
    replica = (tl.program_id(0) // blocks).to(tl.int64)
    first_row = tl.program_id(0) % blocks * ROWS
    rows = first_row.to(tl.int64) + tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    weight += replica * stride_w
    targets += replica * stride_t
    wide, there = dims < D, rows < M
    target = tl.load(targets + rows, mask=there, other=ignore_index)
    labelled = target != ignore_index
    target = target.to(tl.int32)
    h = tl.load(
        hidden + replica * stride_h + rows[:, None] * D + dims[None, :], mask=there[:, None] & wide[None, :], other=0.0
    )
    some = tl.max(labelled.to(tl.int32), 0) > 0
    label = own_logits(h, weight, targets, first_row, M, V, D, ROWS, IDS, WIDTH, some)
    return replica, rows, there, weight, targets, target, labelled, some, h, label


@triton.jit
def finish(
    top, base, total, acc, label, target, labelled, lower, weight, loss, right, log_sum, pull, at, there, V,
    D: tl.constexpr, WIDTH: tl.constexpr, PULL: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """Write what is asked of some rows: from the largest of the other logits, the sums of exp(logit - base) of the
    others and of its products with their weights, and whether a lower id has the target's logit."""
    dims = tl.arange(0, WIDTH)
    valid = labelled & (target >= 0) & (target < V)
    peak = tl.maximum(top, label)
    others = total * tl.exp2((base - peak) * LOG2E)
    mass = others + tl.exp2((label - peak) * LOG2E)
    log_mass = tl.log2(mass)
    cost = log_mass * LN2 + (peak - label)
    tl.store(loss + at, tl.where(valid, cost, tl.where(labelled, float("nan"), 0.0)), mask=there)
    if RIGHT:
        tl.store(right + at, valid & ((label > top) | ((label == top) & (lower == 0))), mask=there)
    tl.store(log_sum + at, tl.where(labelled, peak * LOG2E + log_mass, float("inf")), mask=there)
    if PULL:
        wide = (dims < D)[None, :]
        own = tl.load(weight + target[:, None] * D + dims[None, :], mask=valid[:, None] & wide, other=0.0)
        share = tl.exp2((base - peak) * LOG2E) / mass
        out = acc * share[:, None] - (others / mass)[:, None] * own.to(tl.float32)
        out = tl.where(valid[:, None], out, 0.0)
        tl.store(pull + at[:, None] * D + dims[None, :], out, mask=there[:, None] & wide)


@triton.jit(do_not_specialize=["M", "V", "ignore_index"])
def near_kernel(
    hidden, weight, targets, loss, right, log_sum, pull, again, M, V, stride_h, stride_w, stride_t, ignore_index,
    D: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    PULL: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """Where no logit is far above the target's and none equal to it. `again` says of each block whether it was not so;
    what is written for it is of no use then."""
    replica, rows, there, weight, targets, target, labelled, some, h, label = begin(
        hidden, weight, targets, M, V, stride_h, stride_w, stride_t, ignore_index, D, ROWS, IDS, WIDTH
    )
    ids, dims = tl.arange(0, IDS), tl.arange(0, WIDTH)
    # Which blocks of ids have a target of this program: two bits for every 128th.
    block = target // IDS % 128
    valid = labelled & (target >= 0) & (target < V)
    bit = tl.where(valid, tl.full([ROWS], 1, tl.int64) << (block % 64), 0)
    low = tl.reduce(tl.where(block < 64, bit, 0), 0, either)
    high = tl.reduce(tl.where(block < 64, 0, bit), 0, either)
    # Sums of exp(logit - the target's), without the target's own: nothing must be rescaled on the way, and no product
    # waits for a maximum.
    top = tl.full([ROWS], float("-inf"), tl.float32)  # the largest logit but the target's
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, tl.where(some, V, 0), IDS):
        column = first + ids
        w = weights_at(weight + column[:, None] * D + dims[None, :], column, dims, V, D, WHOLE)
        scores = tl.dot(h, tl.trans(w), input_precision="ieee")
        if not WHOLE:
            scores = tl.where((column < V)[None, :], scores, float("-inf"))
        marks = high if first // IDS % 128 >= 64 else low
        if (marks >> (first // IDS % 64)) & 1:
            scores = tl.where(ids[None, :] == (target - first)[:, None], float("-inf"), scores)
        p = tl.exp2(scores * LOG2E - (label * LOG2E)[:, None])
        total += tl.sum(p, 1)
        if RIGHT:
            top = tl.maximum(top, tl.max(scores, 1))
        if PULL:
            acc = tl.dot(p.to(w.dtype), w, acc, input_precision="ieee")
    # Read again, for the loop to have its registers.
    target = tl.load(targets + rows, mask=there, other=ignore_index, volatile=True)
    labelled = target != ignore_index
    target = target.to(tl.int32)
    far = labelled & ~(total < FAR)
    if RIGHT:
        far |= labelled & (top == label)
    else:
        top = label
    tl.store(again + tl.program_id(0), tl.max(far.to(tl.int32), 0).to(tl.int8))
    at = replica * M + rows
    finish(
        top, label, total, acc, label, target, labelled, 0, weight, loss, right, log_sum, pull, at, there, V,
        D, WIDTH, PULL, RIGHT,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M", "V", "ignore_index"])
def any_kernel(
    hidden, weight, targets, loss, right, log_sum, pull, again, M, V, stride_h, stride_w, stride_t, ignore_index,
    D: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    PULL: tl.constexpr, RIGHT: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Whatever the logits are, by an online softmax; the blocks marked in `again`, or ALL."""
    if not ALL:  # noqa: SIM102 (Triton decides this when it compiles, the next in every program)
        if tl.load(again + tl.program_id(0)) == 0:
            return
    replica, rows, there, weight, targets, target, labelled, some, h, label = begin(
        hidden, weight, targets, M, V, stride_h, stride_w, stride_t, ignore_index, D, ROWS, IDS, WIDTH
    )
    ids, dims = tl.arange(0, IDS), tl.arange(0, WIDTH)
    top = tl.full([ROWS], float("-inf"), tl.float32)  # the largest logit but the target's
    total = tl.zeros([ROWS], tl.float32)  # sum of exp(logit - top), without the target's
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    lower = tl.zeros([ROWS], tl.int32)  # whether a lower id has the target's logit: a tie is right only if none has
    for first in range(0, tl.where(some, V, 0), IDS):
        column = first + ids
        w = weights_at(weight + column[:, None] * D + dims[None, :], column, dims, V, D, WHOLE)
        scores = tl.dot(h, tl.trans(w), input_precision="ieee")
        if not WHOLE:
            scores = tl.where((column < V)[None, :], scores, float("-inf"))
        equal = (scores == label[:, None]) & (column[None, :] < target[:, None])
        lower = tl.maximum(lower, tl.max(equal.to(tl.int32), 1))
        scores = tl.where(ids[None, :] == (target - first)[:, None], float("-inf"), scores)
        new = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp2(scores * LOG2E - (new * LOG2E)[:, None])
        shrink = tl.exp2((top - new) * LOG2E)
        total = total * shrink + tl.sum(p, 1)
        if PULL:
            acc = tl.dot(p.to(w.dtype), w, acc * shrink[:, None], input_precision="ieee")
        top = new
    at = replica * M + rows
    finish(
        top, top, total, acc, label, target, labelled, lower, weight, loss, right, log_sum, pull, at, there, V,
        D, WIDTH, PULL, RIGHT,
    )  # fmt: skip


@triton.jit
def pulls(
    bounds, grad, hidden, w, length,
    D: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr,
    TIMES: tl.constexpr,
):  # fmt: skip
    """(IDS, WIDTH): exp2(logits - bounds) of some ids by `length` rows times hidden; where TIMES, times `grad` too."""
    rows, dims = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    h_at = hidden + rows[:, None] * D + dims[None, :]
    wide = (dims < D)[None, :]
    acc = tl.zeros([IDS, WIDTH], tl.float32)
    for first in range(0, length, ROWS):
        there = first + rows < length
        if EVEN:
            h = tl.load(h_at, mask=wide, other=0.0)
            bound = tl.load(bounds + first + rows)
        else:
            h = tl.load(h_at, mask=there[:, None] & wide, other=0.0)
            bound = tl.load(bounds + first + rows, mask=there, other=float("inf"))
        scores = tl.dot(w, tl.trans(h), input_precision="ieee")
        p = tl.exp2(scores * LOG2E - bound[None, :])
        if TIMES:
            p *= tl.load(grad + first + rows, mask=there, other=0.0)[None, :]
        acc = tl.dot(p.to(h.dtype), h, acc, input_precision="ieee")
        h_at += ROWS * D
    return acc


@triton.jit(do_not_specialize=["R", "M", "V", "piece"])
def weight_kernel(
    grad, signed, hidden, weight, log_sum, shifted, own, out, R, M, V, stride_h, stride_w, piece,
    D: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """`grad` is 0 where there is no label. `own` (R, V, D) float32 is taken off: what the targets' rows give."""
    blocks = tl.cdiv(V, IDS)
    replica = (tl.program_id(0) // blocks % R).to(tl.int64)
    part = (tl.program_id(0) // blocks // R).to(tl.int64)
    dims, column = tl.arange(0, WIDTH), tl.program_id(0) % blocks * IDS + tl.arange(0, IDS)
    at = column[:, None] * D + dims[None, :]
    inside = (column < V)[:, None] & (dims < D)[None, :]
    begin = part * piece
    w = tl.load(weight + replica * stride_w + at, mask=inside, other=0.0)
    # From a base of 64 bits: M D may be beyond 32.
    hidden += replica * stride_h + begin * D
    at_row = replica * M + begin
    length = tl.minimum(M - begin, piece).to(tl.int32)
    if EXACT or tl.load(signed) > 0:
        acc = pulls(log_sum + at_row, grad + at_row, hidden, w, length, D, ROWS, IDS, WIDTH, EVEN, True)
    else:
        # No gradient is negative, as a mean's is not: its logarithm is in `shifted`, and nothing is multiplied. With
        # large logits that costs digits, which 16 bits do not have.
        acc = pulls(shifted + at_row, grad + at_row, hidden, w, length, D, ROWS, IDS, WIDTH, EVEN, False)
    if part == 0:
        acc -= tl.load(own + replica * V * D + at, mask=inside, other=0.0)
    tl.store(out + (part * R + replica) * V * D + at, acc, mask=inside)
