"""Cross-entropy of a tied head in Triton, and the `torch.library` ops around it.

The forward pass is FlashAttention's with keys = values = weight: blocks of rows meet blocks of the vocabulary, and
beside the online softmax it sums pull_m = sum_v p_v w_v - w_t, the gradient of the loss by the hidden row. So the
backward pass of `hidden` is one product with the upstream gradient, and the logits are made twice in all, not three
times: the limits of this op are exponentials (16 a clock and multiprocessor) and the matrix units, at par. The target's
own column is left out of the sums: its share, p_t - 1 = -(the others' share), keeps its digits where p_t is near 1.

The gradient of `weight` has programs of (block of the vocabulary, piece of the rows), each of which goes over its rows
in order; pieces are added in float32 in a second pass. No atomics: the same numbers in every run. Block sizes come from
a table, not from timing, for the same reason: another block size rounds otherwise.

Hazard: rounded probabilities are a product's left operand from registers, which the ptxas of CUDA 12 can miscompile on
Hopper. `zoology.kernels.hopper` checks at first use.

Letters: R replicas, M rows, V vocabulary, D width, S pieces of the rows.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels import hopper
from zoology.kernels.replicas import fold, fold_shared, unfold

MAX_WIDTH = 512
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class Blocks(NamedTuple):
    """What a kernel is compiled for: rows and ids in a block, warps in a program, blocks in flight."""

    rows: int
    ids: int
    warps: int
    stages: int


def forward_blocks(width: int, dtype: torch.dtype) -> Blocks:
    """The forward kernel's blocks, for a width that is a power of two.

    The fastest of eight on an H100 at 12 replicas of 16384 rows and of 1024; nothing spills up to width 256. In
    float32, whose products are not the matrix units', some registers spill at every width.
    """
    if dtype == torch.float32:
        return Blocks(32, 32, 8, 1) if width <= 128 else Blocks(16, 16, 4 if width <= 256 else 8, 1)
    if width <= 128:
        return Blocks(64, 64, 4, 4 if width <= 64 else 3)
    return Blocks(64, 32, 4 if width <= 256 else 8, 2)


def backward_blocks(width: int, dtype: torch.dtype) -> Blocks:
    """The blocks of the kernel of weight's gradient, for a width that is a power of two: the fastest of fifteen on an
    H100, half the time of the slowest. Nothing spills."""
    if dtype == torch.float32:
        return Blocks(32, 32, 4, 2) if width <= 128 else Blocks(16, 16, 4 if width <= 256 else 8, 1)
    if width <= 128:
        return Blocks(128, 64, 4, 2) if width <= 64 else Blocks(32, 128, 4, 3)
    return Blocks(32, 64, 4 if width <= 256 else 8, 2)


@triton.jit(do_not_specialize=["M", "V", "ignore_index"])
def linear_cross_entropy_kernel(
    hidden, weight, targets, loss, right, log_sum, pull, M, V, stride_h, stride_w, stride_t, ignore_index,
    D: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    PULL: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(M, ROWS)
    replica = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    ids, dims = tl.arange(0, IDS), tl.arange(0, WIDTH)
    weight += replica * stride_w
    wide, there = dims < D, rows < M
    target = tl.load(targets + replica * stride_t + rows, mask=there, other=ignore_index)
    labelled = target != ignore_index
    target = target.to(tl.int32)
    h = tl.load(
        hidden + replica * stride_h + rows[:, None] * D + dims[None, :], mask=there[:, None] & wide[None, :], other=0.0
    )
    valid = labelled & (target >= 0) & (target < V)
    # A block with no label at all has nothing to do.
    end = tl.where(tl.sum(labelled.to(tl.int32), 0) > 0, V, 0)
    # The target's logit, by the same product as all others, so that equal ones are equal to the bit.
    label = tl.zeros([ROWS], tl.float32)
    index = tl.arange(0, ROWS)
    for first in range(0, tl.minimum(end, ROWS), IDS):
        # Row first + i of the block has its target's weights in column i.
        at = tl.program_id(0) % blocks * ROWS + first + ids
        own_id = tl.load(targets + replica * stride_t + at, mask=at < M, other=-1)
        known = (own_id >= 0) & (own_id < V)
        w = tl.load(weight + own_id[:, None] * D + dims[None, :], mask=known[:, None] & wide[None, :], other=0.0)
        scores = tl.dot(h, tl.trans(w), input_precision="ieee")
        label += tl.sum(tl.where(ids[None, :] == (index - first)[:, None], scores, 0.0), 1)
    top = tl.full([ROWS], float("-inf"), tl.float32)  # the largest logit but the target's
    total = tl.zeros([ROWS], tl.float32)  # sum of exp(logit - top), without the target's
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, end, IDS):
        column = first + ids
        w = tl.load(weight + column[:, None] * D + dims[None, :], mask=(column < V)[:, None] & wide[None, :], other=0.0)
        scores = tl.dot(h, tl.trans(w), input_precision="ieee")
        if not WHOLE:
            scores = tl.where((column < V)[None, :], scores, float("-inf"))
        scores = tl.where(ids[None, :] == (target - first)[:, None], float("-inf"), scores)
        new = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp2(scores * LOG2E - (new * LOG2E)[:, None])
        shrink = tl.exp2((top - new) * LOG2E)
        total = total * shrink + tl.sum(p, 1)
        if PULL:
            acc = tl.dot(p.to(w.dtype), w, acc * shrink[:, None], input_precision="ieee")
        top = new

    # An exact tie with the target is right only if no lower id has the same logit: look again, which is rare.
    tied = labelled & (label == top)
    lower = tl.zeros([ROWS], tl.int32)
    end = tl.where(tl.sum(tied.to(tl.int32), 0) > 0, V, 0)
    for first in tl.range(0, end, IDS, num_stages=1):
        column = first + ids
        w = tl.load(weight + column[:, None] * D + dims[None, :], mask=(column < V)[:, None] & wide[None, :], other=0.0)
        scores = tl.dot(h, tl.trans(w), input_precision="ieee")
        equal = (scores == label[:, None]) & (column[None, :] < target[:, None])
        lower = tl.maximum(lower, tl.max(equal.to(tl.int32), 1))

    peak = tl.maximum(top, label)
    others = total * tl.exp2((top - peak) * LOG2E)
    mass = others + tl.exp2((label - peak) * LOG2E)
    log_mass = tl.log2(mass)
    cost = log_mass * LN2 + (peak - label)
    at = replica * M + rows
    tl.store(loss + at, tl.where(valid, cost, tl.where(labelled, float("nan"), 0.0)), mask=there)
    tl.store(right + at, valid & ((label > top) | (tied & (lower == 0))), mask=there)
    tl.store(log_sum + at, tl.where(labelled, peak * LOG2E + log_mass, float("inf")), mask=there)
    if PULL:
        own = tl.load(weight + target[:, None] * D + dims[None, :], mask=valid[:, None] & wide[None, :], other=0.0)
        share = tl.exp2((top - peak) * LOG2E) / mass
        out = acc * share[:, None] - (others / mass)[:, None] * own.to(tl.float32)
        out = tl.where(valid[:, None], out, 0.0)
        tl.store(pull + at[:, None] * D + dims[None, :], out, mask=there[:, None] & wide[None, :])


@triton.jit(do_not_specialize=["R", "M", "V", "piece"])
def linear_cross_entropy_weight_kernel(
    grad, hidden, weight, targets, log_sum, out, R, M, V, stride_h, stride_w, stride_t, piece,
    D: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """`grad` is 0 where there is no label."""
    blocks = tl.cdiv(V, IDS)
    ids, begin_id = tl.arange(0, IDS), tl.program_id(0) % blocks * IDS
    column = begin_id + ids
    replica = (tl.program_id(0) // blocks % R).to(tl.int64)
    part = (tl.program_id(0) // blocks // R).to(tl.int64)
    rows, dims = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    wide, known = dims < D, column < V
    at = column[:, None] * D + dims[None, :]
    begin = part * piece
    w = tl.load(weight + replica * stride_w + at, mask=known[:, None] & wide[None, :], other=0.0)
    # Pointers move with the rows, from a base of 64 bits: M D may be beyond 32.
    h_at = hidden + replica * stride_h + begin * D + rows[:, None] * D + dims[None, :]
    t_at = targets + replica * stride_t + begin + rows
    grad += replica * M + begin
    log_sum += replica * M + begin
    length = tl.minimum(M - begin, piece).to(tl.int32)
    acc = tl.zeros([IDS, WIDTH], tl.float32)
    for first in range(0, length, ROWS):
        if EVEN:
            h = tl.load(h_at, mask=wide[None, :], other=0.0)
            target, bound, g = tl.load(t_at), tl.load(log_sum + first + rows), tl.load(grad + first + rows)
        else:
            there = first + rows < length
            h = tl.load(h_at, mask=there[:, None] & wide[None, :], other=0.0)
            target = tl.load(t_at, mask=there, other=-1)
            bound = tl.load(log_sum + first + rows, mask=there, other=float("inf"))
            g = tl.load(grad + first + rows, mask=there, other=0.0)
        scores = tl.dot(w, tl.trans(h), input_precision="ieee")
        p = tl.exp2(scores * LOG2E - bound[None, :])
        hit = ids[:, None] == (target - begin_id)[None, :]
        p = p * g[None, :] - tl.where(hit, g[None, :], 0.0)
        acc = tl.dot(p.to(h.dtype), h, acc, input_precision="ieee")
        h_at += ROWS * D
        t_at += ROWS
    tl.store(out + (part * R + replica) * V * D + at, acc, mask=known[:, None] & wide[None, :])


def _rows(x: Tensor) -> Tensor:
    """A tensor whose axes after the first lie dense; the first may have any stride, 0 too."""
    return x if x[0].is_contiguous() else x.contiguous()


def _stride(x: Tensor) -> int:
    return x.stride(0) if x.shape[0] > 1 else 0


def launch_forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, keep: bool, blocks: Blocks | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The forward kernel, with `blocks` from the table or given; see `forward`."""
    replicas, count, d = hidden.shape
    loss, log_sum = (hidden.new_empty(replicas, count, dtype=torch.float32) for _ in range(2))
    right = hidden.new_empty(replicas, count, dtype=torch.bool)
    pull = hidden.new_empty(replicas, count if keep else 0, d)
    if loss.numel():
        hidden, weight, targets = _rows(hidden), _rows(weight.to(hidden.dtype)), _rows(targets)
        v, width = weight.shape[1], max(triton.next_power_of_2(d), 16)
        b = blocks or forward_blocks(width, hidden.dtype)
        linear_cross_entropy_kernel[(replicas * triton.cdiv(count, b.rows),)](
            hidden, weight, targets, loss, right, log_sum, pull, count, v,
            _stride(hidden), _stride(weight), _stride(targets), ignore_index,
            D=d, ROWS=b.rows, IDS=b.ids, WIDTH=width, WHOLE=v % b.ids == 0, PULL=keep,
            num_warps=b.warps, num_stages=b.stages,
        )  # fmt: skip
    return loss, right, log_sum, pull


def pieces(replicas: int, rows: int, ids: int, blocks: Blocks, processors: int) -> int:
    """S: as many pieces of the rows as give each processor two programs, of at least 512 rows."""
    programs = replicas * triton.cdiv(ids, blocks.ids)
    return max(1, min(triton.cdiv(2 * processors, programs), rows // 512))


def launch_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    blocks: Blocks | None = None,
) -> Tensor:
    """The kernel of weight's gradient, with `blocks` from the table or given; see `weight_gradient`."""
    replicas, count, d = hidden.shape
    if not hidden.numel():
        return weight.new_zeros(weight.shape)
    v, width = weight.shape[1], max(triton.next_power_of_2(d), 16)
    b = blocks or backward_blocks(width, hidden.dtype)
    cuda = hidden.device.type == "cuda"
    processors = torch.cuda.get_device_properties(hidden.device).multi_processor_count if cuda else 8
    parts = pieces(replicas, count, v, b, processors)
    piece = triton.cdiv(triton.cdiv(count, parts), b.rows) * b.rows
    parts = triton.cdiv(count, piece)
    dtype = weight.dtype if parts == 1 else torch.float32
    out = weight.new_empty(parts, replicas, v, d, dtype=dtype)
    hidden, cast = _rows(hidden), _rows(weight.to(hidden.dtype))
    grad = grad.to(torch.float32).masked_fill(targets == ignore_index, 0.0).contiguous()
    targets = _rows(targets.to(torch.int32))  # which are read once for each block of the vocabulary
    linear_cross_entropy_weight_kernel[(parts * replicas * triton.cdiv(v, b.ids),)](
        grad, hidden, cast, targets, log_sum.contiguous(), out, replicas, count, v,
        _stride(hidden), _stride(cast), _stride(targets), piece,
        D=d, ROWS=b.rows, IDS=b.ids, WIDTH=width, EVEN=count % b.rows == 0, num_warps=b.warps, num_stages=b.stages,
    )  # fmt: skip
    total = out[0]
    for part in out[1:]:  # in place, as a sum of its own would be the most memory of all
        total += part
    return total.to(weight.dtype)


def limits(hidden: Tensor, weight: Tensor) -> None:
    """Refuse what the kernels cannot take.

    Raises:
        ValueError: naming the limit.
    """
    if hidden.shape[-1] > MAX_WIDTH or hidden.shape[-1] < 1:
        raise ValueError(f"D = {hidden.shape[-1]}: the Triton kernel takes 1 to {MAX_WIDTH}")
    if hidden.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"hidden is {hidden.dtype}: the Triton kernel takes float32, bfloat16 and float16")
    if weight.shape[-2] * weight.shape[-1] >= 2**31:
        raise ValueError(f"V D = {weight.shape[-2] * weight.shape[-1]}: the Triton kernel takes less than 2^31")


def _errors(d: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Relative errors of loss and gradients on a small instance, against float64."""
    count, v = 300, 512
    ramp = torch.arange(2 * max(count, v) * d, device=device, dtype=torch.float64)
    h = (ramp[: 2 * count * d] * 1.7).sin().view(2, count, d).to(dtype)
    w = (ramp[: 2 * v * d] * 2.3 + 1).cos().mul(2 * d**-0.5).view(2, v, d).to(dtype)
    targets = (torch.arange(count, device=device) * 37 % v).unsqueeze(0)
    loss, _, log_sum, pull = launch_forward(h, w, targets, -100, True)
    weight_grad = launch_backward(torch.ones_like(loss), h, w, targets, log_sum, -100)
    logits = h.double() @ w.double().mT
    own = targets.unsqueeze(-1).expand(2, -1, -1)
    exact = logits.logsumexp(-1) - logits.gather(-1, own).squeeze(-1)
    slope = logits.softmax(-1).scatter_add(-1, own, -torch.ones_like(logits[..., :1]))
    pairs = {
        "the loss": (loss, exact),
        "the gradient of hidden": (pull, slope @ w.double()),
        "the gradient of weight": (weight_grad, slope.mT @ h.double()),
    }
    return {name: float((got.double() - want).norm() / want.norm()) for name, (got, want) in pairs.items()}


def _check(hidden: Tensor) -> None:
    d, dtype, device = hidden.shape[-1], hidden.dtype, hidden.device
    if dtype != torch.float32:  # float32 does not go through the matrix units
        hopper.check(f"linear_cross_entropy, D = {d}, {dtype}", device, lambda: _errors(d, dtype, device))


@torch.library.custom_op("zoology::linear_cross_entropy", mutates_args=())
def forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden (R, M, D), weight (R, V, D), targets (R, M) or (1, M).

    Returns:
        loss (R, M) float32; right (R, M) bool; log2 of the sum of exp(logits), (R, M) float32, infinite where ignored;
        and pull (R, M, D), the loss's gradient by hidden, or (R, 0, D) unless `keep`.
    """
    _check(hidden)
    return launch_forward(hidden, weight, targets, ignore_index, keep)


@forward.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, keep: bool) -> tuple[Tensor, ...]:
    replicas, count, d = hidden.shape
    loss, log_sum = (hidden.new_empty(replicas, count, dtype=torch.float32) for _ in range(2))
    right = hidden.new_empty(replicas, count, dtype=torch.bool)
    return loss, right, log_sum, hidden.new_empty(replicas, count if keep else 0, d)


@torch.library.custom_op("zoology::linear_cross_entropy_weight_gradient", mutates_args=())
def weight_gradient(
    grad: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, log_sum: Tensor, ignore_index: int
) -> Tensor:
    """The gradient of `weight`, (R, V, D) in its dtype, for the gradient (R, M) of the loss."""
    _check(hidden)
    return launch_backward(grad, hidden, weight, targets, log_sum, ignore_index)


@weight_gradient.register_fake
def _(grad: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, log_sum: Tensor, ignore_index: int) -> Tensor:
    return weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, ctx.ignore_index, ctx.keep = inputs
    ctx.save_for_backward(hidden, weight, targets, output[2], output[3])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(other is not None for other in others):
        raise RuntimeError("linear_cross_entropy has no second derivative in Triton: use implementation='reference'")
    hidden, weight, targets, log_sum, pull = ctx.saved_tensors
    by_hidden = by_weight = None
    if grad is not None and ctx.needs_input_grad[0]:
        if not ctx.keep:
            pull = forward(hidden, weight, targets, ctx.ignore_index, True)[3]
        by_hidden = (grad.unsqueeze(-1) * pull).to(hidden.dtype)
    if grad is not None and ctx.needs_input_grad[1]:
        by_weight = weight_gradient(grad, hidden, weight, targets, log_sum, ctx.ignore_index)
    return by_hidden, by_weight, None, None, None


forward.register_autograd(_backward, setup_context=_setup)


@forward.register_vmap
def _(
    info: Any, in_dims: tuple[Any, ...], hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, keep: bool
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    hidden, weight = fold(hidden, in_dims[0], size), fold(weight, in_dims[1], size)
    targets = fold_shared(targets, in_dims[2], size, hidden.shape[0] // size)
    return tuple(unfold(x, size) for x in forward(hidden, weight, targets, ignore_index, keep)), (0, 0, 0, 0)


@weight_gradient.register_vmap
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    log_sum: Tensor,
    ignore_index: int,
) -> tuple[Tensor, int]:
    size = info.batch_size
    grad, hidden, weight = (fold(x, dim, size) for x, dim in zip((grad, hidden, weight), in_dims[:3], strict=True))
    targets = fold_shared(targets, in_dims[3], size, hidden.shape[0] // size)
    out = weight_gradient(grad, hidden, weight, targets, fold(log_sum, in_dims[4], size), ignore_index)
    return unfold(out, size), 0
