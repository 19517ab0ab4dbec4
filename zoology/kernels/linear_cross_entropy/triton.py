"""Cross-entropy of a tied head in Triton, and the `torch.library` ops around it.

The kernels are in `programs`, which says how they go about it. Block sizes come from a table, not from timing: another
block size rounds otherwise.

Hazard: rounded probabilities are a product's left operand from registers, which the ptxas of CUDA 12 can miscompile on
Hopper. `zoology.kernels.hopper` checks at first use.

Letters: R replicas, M rows, V vocabulary, D width, S pieces of the rows.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from zoology.kernels import hopper
from zoology.kernels.embedding import triton as embedding
from zoology.kernels.linear_cross_entropy.programs import (
    any_kernel,
    near_kernel,
    weight_kernel,
)
from zoology.kernels.replicas import fold, fold_shared, register_limit, unfold

MAX_WIDTH = 512


class Blocks(NamedTuple):
    """What a kernel is compiled for: rows and ids in a block, warps in a program, blocks in flight, and registers of a
    thread at most."""

    rows: int
    ids: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def words(self) -> dict[str, int]:
        """As a kernel's keywords."""
        blocks = {"ROWS": self.rows, "IDS": self.ids, "num_warps": self.warps, "num_stages": self.stages}
        return blocks | register_limit(self.registers)


def forward_blocks(width: int, dtype: torch.dtype) -> Blocks:
    """The forward kernel's blocks, for a width that is a power of two.

    The fastest of fifteen on an H200 at 12 replicas of 16384 rows; nothing spills in the loop up to width 256. With
    128 registers four programs fit on a multiprocessor, where three would take a quarter longer. In float32, whose
    products are not the matrix units', some registers spill at every width.
    """
    if dtype == torch.float32:
        return Blocks(32, 32, 8, 1) if width <= 128 else Blocks(16, 16, 4 if width <= 256 else 8, 1)
    if width <= 128:
        return Blocks(64, 64, 4, 3, 128 if width <= 64 else None)
    return Blocks(64, 32, 4 if width <= 256 else 8, 2)


def backward_blocks(width: int, dtype: torch.dtype) -> Blocks:
    """The blocks of the kernel of weight's gradient, for a width that is a power of two: the fastest of twenty on an
    H200, a third of the time of the slowest. Nothing spills."""
    if dtype == torch.float32:
        return Blocks(32, 32, 4, 2) if width <= 128 else Blocks(16, 16, 4 if width <= 256 else 8, 1)
    if width <= 128:
        return Blocks(128, 64, 4, 2, 128) if width <= 64 else Blocks(32, 128, 4, 3)
    return Blocks(32, 64, 4 if width <= 256 else 8, 2)


def _rows(x: Tensor) -> Tensor:
    """A tensor whose axes after the first lie dense; the first may have any stride, 0 too."""
    return x if x[0].is_contiguous() else x.contiguous()


def _stride(x: Tensor) -> int:
    return x.stride(0) if x.shape[0] > 1 else 0


def launch_forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    keep: bool,
    blocks: Blocks | None = None,
    judge: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The forward kernel, with `blocks` from the table or given; see `forward`."""
    replicas, count, d = hidden.shape
    loss, log_sum = (hidden.new_empty(replicas, count, dtype=torch.float32) for _ in range(2))
    right = hidden.new_empty(replicas, count if judge else 0, dtype=torch.bool)
    pull = hidden.new_empty(replicas, count if keep else 0, d)
    if loss.numel():
        hidden, weight, targets = _rows(hidden), _rows(weight.to(hidden.dtype)), _rows(targets)
        v, width = weight.shape[1], max(triton.next_power_of_2(d), 16)
        b = blocks or forward_blocks(width, hidden.dtype)
        grid = (replicas * triton.cdiv(count, b.rows),)
        again = hidden.new_empty(grid, dtype=torch.int8)
        args = (
            hidden, weight, targets, loss, right, log_sum, pull, again, count, v,
            _stride(hidden), _stride(weight), _stride(targets), ignore_index,
        )  # fmt: skip
        words = {"D": d, "WIDTH": width, "WHOLE": v % b.ids == 0, "PULL": keep, "RIGHT": judge}
        every = hidden.dtype == torch.float16
        if not every:
            near_kernel[grid](*args, **words, **b.words)
        any_kernel[grid](*args, **words, **b._replace(registers=None).words, ALL=every)
    return loss, right, log_sum, pull


def pieces(replicas: int, rows: int, ids: int, blocks: Blocks, processors: int) -> int:
    """S: as many pieces of the rows as give each processor two programs, of at least 512 rows."""
    programs = replicas * triton.cdiv(ids, blocks.ids)
    return max(1, min(triton.cdiv(2 * processors, programs), rows // 512))


class Factors(NamedTuple):
    """What a gradient of the loss says of each row, (R, M) in float32, and of all, `signed`.

    grad: itself, 0 where the target is ignored.
    shifted: the exponent of 2 that, taken off a logit's, leaves p grad; no number where grad is negative.
    scale: by what a row's target has too much in p grad, rounded: it gives (p - 1) grad.
    signed: whether any is negative, or no number.
    """

    grad: Tensor
    shifted: Tensor
    scale: Tensor
    signed: Tensor


def factors(
    grad: Tensor, targets: Tensor, loss: Tensor, log_sum: Tensor, ignore_index: int, dtype: torch.dtype
) -> Factors:
    """Of the gradient (R, M) of the loss, for products in `dtype`. Plain PyTorch, which torch.compile fuses."""
    grad = grad.to(torch.float32).masked_fill(targets == ignore_index, 0.0)
    rounded = ((-loss).exp() * grad).to(dtype).float()
    return Factors(grad, log_sum - grad.log2(), rounded - (-loss).expm1() * grad, ~(grad >= 0).all())


def launch_backward(
    by_loss: Factors,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    log_sum: Tensor,
    dtype: torch.dtype,
    blocks: Blocks | None = None,
) -> Tensor:
    """The kernel of weight's gradient, with `blocks` from the table or given; see `weight_gradient`."""
    replicas, count, d = hidden.shape
    if not hidden.numel():
        return weight.new_zeros(weight.shape, dtype=dtype)
    v, width = weight.shape[1], max(triton.next_power_of_2(d), 16)
    b = blocks or backward_blocks(width, hidden.dtype)
    cuda = hidden.device.type == "cuda"
    processors = torch.cuda.get_device_properties(hidden.device).multi_processor_count if cuda else 8
    parts = pieces(replicas, count, v, b, processors)
    piece = triton.cdiv(triton.cdiv(count, parts), b.rows) * b.rows
    parts = triton.cdiv(count, piece)
    out = weight.new_empty(parts, replicas, v, d, dtype=dtype if parts == 1 else torch.float32)
    hidden, weight = _rows(hidden), _rows(weight.to(hidden.dtype))
    grad, shifted, scale, signed = (x.contiguous() for x in by_loss)
    own = embedding.launch(hidden, targets, v, scale=scale)
    weight_kernel[(parts * replicas * triton.cdiv(v, b.ids),)](
        grad, signed, hidden, weight, log_sum.contiguous(), shifted, own, out, replicas, count, v,
        _stride(hidden), _stride(weight), piece,
        D=d, WIDTH=width, EVEN=count % b.rows == 0, EXACT=hidden.dtype == torch.float32, **b.words,
    )  # fmt: skip
    total = out[0]
    for part in out[1:]:  # in place, as a sum of its own would be the most memory of all
        total += part
    return total.to(dtype)


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
    by_loss = factors(torch.ones_like(loss), targets, loss, log_sum, -100, dtype)
    weight_grad = launch_backward(by_loss, h, w, targets, log_sum, dtype)
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
    hidden: Tensor, weight: Tensor, cast: Tensor, targets: Tensor, ignore_index: int, keep: bool, judge: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden (R, M, D), weight (R, V, D), targets (R, M) or (1, M).

    `cast` is `weight`, without a gradient, in the dtype of `hidden`. It is what is read: made outside, it is made once
    for both passes.

    Returns:
        loss (R, M) float32; right (R, M) bool, or (R, 0) unless `judge`; log2 of the sum of exp(logits), (R, M)
        float32, infinite where ignored; and pull (R, M, D), the loss's gradient by hidden, or (R, 0, D) unless `keep`.
    """
    _check(hidden)
    return launch_forward(hidden, cast, targets, ignore_index, keep, judge=judge)


@forward.register_fake
def _(
    hidden: Tensor, weight: Tensor, cast: Tensor, targets: Tensor, ignore_index: int, keep: bool, judge: bool
) -> tuple[Tensor, ...]:
    replicas, count, d = hidden.shape
    loss, log_sum = (hidden.new_empty(replicas, count, dtype=torch.float32) for _ in range(2))
    right = hidden.new_empty(replicas, count if judge else 0, dtype=torch.bool)
    return loss, right, log_sum, hidden.new_empty(replicas, count if keep else 0, d)


@torch.library.custom_op("zoology::linear_cross_entropy_weight_gradient", mutates_args=())
def weight_gradient(
    grad: Tensor,
    shifted: Tensor,
    scale: Tensor,
    signed: Tensor,
    hidden: Tensor,
    cast: Tensor,
    targets: Tensor,
    log_sum: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of weight, (R, V, D) in `dtype`, for the `Factors` of the loss's."""
    _check(hidden)
    return launch_backward(Factors(grad, shifted, scale, signed), hidden, cast, targets, log_sum, dtype)


@weight_gradient.register_fake
def _(
    grad: Tensor,
    shifted: Tensor,
    scale: Tensor,
    signed: Tensor,
    hidden: Tensor,
    cast: Tensor,
    targets: Tensor,
    log_sum: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    return cast.new_empty(cast.shape, dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, cast, targets, ctx.ignore_index, ctx.keep, ctx.judge = inputs
    ctx.dtype = weight.dtype
    ctx.save_for_backward(hidden, cast, targets, output[0], output[2], output[3])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(other is not None for other in others):
        raise RuntimeError("linear_cross_entropy has no second derivative in Triton: use implementation='reference'")
    hidden, cast, targets, loss, log_sum, pull = ctx.saved_tensors
    by_hidden = by_weight = None
    if grad is not None and ctx.needs_input_grad[0]:
        if not ctx.keep:
            pull = forward(hidden, cast, cast, targets, ctx.ignore_index, True, ctx.judge)[3]
        by_hidden = (grad.unsqueeze(-1) * pull).to(hidden.dtype)
    if grad is not None and ctx.needs_input_grad[1]:
        by_loss = factors(grad, targets, loss, log_sum, ctx.ignore_index, hidden.dtype)
        by_weight = weight_gradient(*by_loss, hidden, cast, targets, log_sum, ctx.dtype)
    return by_hidden, by_weight, None, None, None, None, None


forward.register_autograd(_backward, setup_context=_setup)


@forward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    hidden, weight, cast = (fold(x, dim, size) for x, dim in zip(args[:3], in_dims[:3], strict=True))
    targets = fold_shared(args[3], in_dims[3], size, hidden.shape[0] // size)
    return tuple(unfold(x, size) for x in forward(hidden, weight, cast, targets, *args[4:])), (0, 0, 0, 0)


@weight_gradient.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    size = info.batch_size
    signed = args[3].any()
    pairs = zip(args[:3] + args[4:6], in_dims[:3] + in_dims[4:6], strict=True)
    grad, shifted, scale, hidden, cast = (fold(x, dim, size) for x, dim in pairs)
    targets = fold_shared(args[6], in_dims[6], size, hidden.shape[0] // size)
    log_sum = fold(args[7], in_dims[7], size)
    out = weight_gradient(grad, shifted, scale, signed, hidden, cast, targets, log_sum, args[8])
    return unfold(out, size), 0
