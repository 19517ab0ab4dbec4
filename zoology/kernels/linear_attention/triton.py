"""Linear attention in Triton: the `torch.library` ops around the kernels of `inside`.

The op's batch is whatever is folded into it: `torch.vmap` puts the replicas there.

Letters: B batch, T time, H heads, f width of q and k, dv width of v; P rows of decays, each of B / P rows of the batch.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels import hopper
from zoology.kernels.linear_attention import inside
from zoology.kernels.linear_attention.exact import exact
from zoology.kernels.replicas import fold, unfold

MAX_KEY, MAX_VALUE = 256, 128


class Blocks(NamedTuple):
    """What a kernel is compiled for: a program's rows, tokens that they meet at a time, warps, blocks in flight."""

    rows: int
    cols: int
    warps: int
    stages: int


def padded(n: int) -> int:
    """The width that a kernel computes with: products take no less than 16."""
    return max(16, triton.next_power_of_2(n))


def output_blocks(length: int, f: int, dv: int, dtype: torch.dtype) -> Blocks:
    """The forward kernel's blocks, for a chunk of `length` tokens."""
    if dtype == torch.float32:
        return Blocks(min(32, padded(length)), 32 if max(f, dv) <= 128 else 16, 4, 1)
    rows = min(64, padded(length))
    return Blocks(rows, min(64 if f <= 128 else 32, padded(length)), 4, 2)


def gradient_blocks(length: int, f: int, dv: int, dtype: torch.dtype) -> Blocks:
    """The blocks of both gradient kernels."""
    if dtype == torch.float32:
        return Blocks(min(32, padded(length)), 32 if max(f, dv) <= 64 else 16, 4, 1)
    rows = min(64, padded(length))
    return Blocks(rows, min(64 if f <= 64 else 32, padded(length)), 4, 2)


def whole_blocks(length: int, f: int, dv: int, dtype: torch.dtype) -> Blocks | None:
    """The blocks of the kernel that makes all gradients of a chunk at once, or None where the chunk is too long."""
    limit = 32 if dtype == torch.float32 else 128 if f <= 32 else 64
    if length > limit or f > 128:
        return None
    rows = padded(length)
    return Blocks(rows, rows, 8 if rows > 64 else 4, 1)


class Problem:
    """The arguments that all kernels share, for one piece of work."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, taylor: bool, normalise: bool, eps: float
    ):
        self.q, self.k, self.v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        self.batch, self.time, self.heads, self.f = q.shape
        self.dv = v.shape[-1]
        self.chunk = self.time
        self.repeat = self.batch // log_decay.shape[0] if log_decay is not None else 1
        self.near, self.rest = self._cumulative(log_decay) if log_decay is not None else (q, q)
        self.decayed, self.taylor, self.normalise, self.eps = log_decay is not None, taylor, normalise, eps

    def float32(self, *shape: int) -> Tensor:
        return self.q.new_empty(shape, dtype=torch.float32)

    def tokens(self, there: bool) -> Tensor:
        """One number for each token and head, if there."""
        return self.float32(self.batch, self.heads, self.time) if there else self.float32(0)

    def grid(self, rows: int) -> tuple[int]:
        blocks = triton.cdiv(min(self.chunk, self.time), rows)
        return (self.batch * self.heads * triton.cdiv(self.time, self.chunk) * blocks,)

    @property
    def sizes(self) -> tuple[Any, ...]:
        strides = (s for x in (self.q, self.k, self.v) for s in x.stride()[:3])
        scale = self.f**-0.5 if self.taylor else 1.0
        return (self.time, self.heads, self.chunk, self.repeat, *strides, scale, self.eps)

    def options(self, blocks: Blocks) -> dict[str, Any]:
        # A weight does not stay within float16 as its factors do; TF32 has the same digits, and the range.
        narrow = tl.bfloat16 if self.q.dtype == torch.bfloat16 else tl.float32
        return {
            "F": self.f,
            "FW": padded(self.f),
            "V": self.dv,
            "VW": padded(self.dv),
            "ROWS": blocks.rows,
            "TAYLOR": self.taylor,
            "NORMALISE": self.normalise,
            "DECAY": self.decayed,
            "NARROW": narrow,
            "PRECISION": "tf32" if self.q.dtype == torch.float16 else "ieee",
            "num_warps": blocks.warps,
            "num_stages": blocks.stages,
        }

    def _cumulative(self, log_decay: Tensor) -> tuple[Tensor, Tensor]:
        rows = log_decay.shape[0]
        near, rest = (self.float32(rows, self.heads, self.time) for _ in range(2))
        block = triton.next_power_of_2(min(self.chunk, self.time))
        grid = (rows * self.heads * triton.cdiv(self.time, self.chunk),)
        inside.cumulative_kernel[grid](
            log_decay, near, rest, self.time, self.heads, self.chunk, *log_decay.stride(), BLOCK=block
        )
        return near, rest

    def decay_gradient(self, across: Tensor, down: Tensor | None, rows: int) -> Tensor:
        """The gradient of the decays of `rows` rows, (P, T, H) in float32."""
        dg = self.float32(self.batch, self.time, self.heads)
        block = triton.next_power_of_2(min(self.chunk, self.time))
        inside.decay_gradient_kernel[self.grid(self.chunk)](
            across, across if down is None else down, dg, self.time, self.heads, self.chunk,
            BLOCK=block, BOTH=down is not None,
        )  # fmt: skip
        return dg if rows == self.batch else dg.unflatten(0, (rows, -1)).sum(1)


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    taylor: bool,
    normalise: bool,
    eps: float,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """The forward kernel, with `blocks` from the table or given; see `forward`."""
    o = v.new_empty(v.shape)
    batch, time, heads, _ = q.shape
    den = v.new_empty((batch, heads, time) if normalise else (0,), dtype=torch.float32)
    if o.numel():
        p = Problem(q, k, v, log_decay, taylor, normalise, eps)
        b = blocks or output_blocks(p.chunk, p.f, p.dv, q.dtype)
        inside.output_kernel[p.grid(b.rows)](
            p.q, p.k, p.v, p.near, p.rest, o, den, *p.sizes, COLS=b.cols, **p.options(b)
        )
    return o, den


def launch_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    o: Tensor,
    den: Tensor,
    taylor: bool,
    normalise: bool,
    eps: float,
    blocks: tuple[Blocks | None, Blocks, Blocks] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient kernels, with blocks (of the whole, dq's, dk's) from the table or given; see `backward`."""
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    rows = 0 if log_decay is None else log_decay.shape[0]
    if not o.numel():
        return *(x.zero_() for x in (dq, dk, dv)), q.new_zeros(rows, *q.shape[1:3], dtype=torch.float32)
    p = Problem(q, k, v, log_decay, taylor, normalise, eps)
    size = (p.chunk, p.f, p.dv, q.dtype)
    whole, for_q, for_k = blocks or (whole_blocks(*size), gradient_blocks(*size), gradient_blocks(*size))
    do, across = do.contiguous(), p.tokens(p.decayed)
    down = None
    if whole is not None:
        inside.gradient_kernel[p.grid(whole.rows)](
            p.q, p.k, p.v, p.near, p.rest, do, dq, dk, dv, across, *p.sizes, **p.options(whole)
        )
    else:
        delta, down = p.tokens(normalise), p.tokens(p.decayed)
        inside.query_gradient_kernel[p.grid(for_q.rows)](
            p.q, p.k, p.v, p.near, p.rest, o, den, do, dq, delta, across, *p.sizes, COLS=for_q.cols, **p.options(for_q)
        )
        inside.key_gradient_kernel[p.grid(for_k.rows)](
            p.q, p.k, p.v, p.near, p.rest, den, do, dk, dv, delta, down, *p.sizes, COLS=for_k.cols, **p.options(for_k)
        )
    dg = p.decay_gradient(across, down, rows) if p.decayed else p.float32(0, *q.shape[1:3])
    return dq, dk, dv, dg


def limits(q: Tensor, v: Tensor) -> None:
    """Refuse what the kernels cannot take.

    Raises:
        ValueError: naming the limit.
    """
    if not 1 <= q.shape[-1] <= MAX_KEY:
        raise ValueError(f"f = {q.shape[-1]}: the Triton kernel takes 1 to {MAX_KEY}")
    if v.shape[-1] < 1:
        raise ValueError("dv = 0: the Triton kernel takes at least 1")
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"q is {q.dtype}: the Triton kernel takes float32, bfloat16 and float16")
    if q.shape[1] >= 2**30:
        raise ValueError(f"T = {q.shape[1]}: the Triton kernel takes less than 2^30")


@torch.library.custom_op("zoology::linear_attention", mutates_args=())
def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, taylor: bool, normalise: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """q, k (B, T, H, f), v (B, T, H, dv), all of one dtype; log_decay (P, T, H), where P divides B, or None.

    Returns:
        o (B, T, H, dv); and the sums of weights (B, H, T) in float32, or none of them if not `normalise`.
    """
    _check(q, v, log_decay is not None, taylor, normalise)
    return launch_forward(q, k, v, log_decay, taylor, normalise, eps)


@forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, taylor: bool, normalise: bool, eps: float
) -> tuple[Tensor, Tensor]:
    batch, time, heads, _ = q.shape
    return v.new_empty(v.shape), v.new_empty((batch, heads, time) if normalise else (0,), dtype=torch.float32)


@torch.library.custom_op("zoology::linear_attention_gradient", mutates_args=())
def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    o: Tensor,
    den: Tensor,
    taylor: bool,
    normalise: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v in their dtype, and of log_decay in float32, (0, T, H) where there is none."""
    _check(q, v, log_decay is not None, taylor, normalise)
    return launch_backward(do, q, k, v, log_decay, o, den, taylor, normalise, eps)


@backward.register_fake
def _(do: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    rows = 0 if log_decay is None else log_decay.shape[0]
    return *(x.new_empty(x.shape) for x in (q, k, v)), q.new_empty(rows, *q.shape[1:3], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_decay, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, log_decay, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, other: Tensor | None) -> tuple[Tensor | None, ...]:
    if other is not None:
        raise RuntimeError("linear_attention has no second derivative in Triton: use implementation='reference'")
    if do is None:
        return (None,) * 7
    q, k, v, log_decay, o, den = ctx.saved_tensors
    dq, dk, dv, dg = backward(do, q, k, v, log_decay, o, den, *ctx.options)
    return dq, dk, dv, None if log_decay is None else dg.to(log_decay.dtype), None, None, None


forward.register_autograd(_backward, setup_context=_setup)


def _fold_decay(x: Tensor | None, dim: int | None, size: int, shared: bool) -> Tensor | None:
    """What all replicas read stays one row if it may be `shared`."""
    if x is None or (shared and dim is None and x.shape[0] == 1):
        return x
    return fold(x, dim, size)


@forward.register_vmap
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    taylor: bool,
    normalise: bool,
    eps: float,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    size = info.batch_size
    q, k, v = (fold(x, dim, size) for x, dim in zip((q, k, v), in_dims[:3], strict=True))
    log_decay = _fold_decay(log_decay, in_dims[3], size, shared=True)
    o, den = forward(q, k, v, log_decay, taylor, normalise, eps)
    return (unfold(o, size), unfold(den, size) if normalise else den), (0, 0 if normalise else None)


@backward.register_vmap
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    o: Tensor,
    den: Tensor,
    taylor: bool,
    normalise: bool,
    eps: float,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    do, q, k, v = (fold(x, dim, size) for x, dim in zip((do, q, k, v), in_dims[:4], strict=True))
    log_decay = _fold_decay(log_decay, in_dims[4], size, shared=False)
    o, den = fold(o, in_dims[5], size), fold(den, in_dims[6], size) if normalise else den
    out = backward(do, q, k, v, log_decay, o, den, taylor, normalise, eps)
    return tuple(unfold(x, size) for x in out), (0, 0, 0, 0)


def _errors(shape: tuple[int, ...], dv: int, dtype: torch.dtype, device: torch.device, *flags: Any) -> dict[str, float]:
    """Relative errors against float64 of two rows of the batch. Weights are positive, and gradients do not cancel."""
    decayed, taylor, normalise = flags
    _, time, heads, f = shape
    ramp = torch.arange(2 * time * heads * max(f, dv), device=device, dtype=torch.float64)
    q, k, v, do = (
        (ramp[: 2 * time * heads * width] * speed).sin().view(2, time, heads, width)
        for width, speed in ((f, 1.7), (f, 2.3), (dv, 3.1), (dv, 1.3))
    )
    if not taylor:
        q, k = q.relu() + 0.1, k.relu() + 0.1
    q, k, v, do = (x.to(dtype) for x in (q, k, v, do))
    g = (ramp[: 2 * time * heads] * 2.9).cos().sub(1).div(8).view(2, time, heads) if decayed else None
    o, den = launch_forward(q, k, v, g, taylor, normalise, 1e-6)
    got = (o, *launch_backward(do, q, k, v, g, o, den, taylor, normalise, 1e-6))
    names = ("the output", *(f"the gradient of {x}" for x in ("q", "k", "v", "log_decay")))
    pairs = zip(names, got, exact(do, q, k, v, g, taylor, normalise, 1e-6), strict=True)
    return {name: float((a.double() - b).norm() / b.norm()) for name, a, b in pairs if b is not None}


def _check(q: Tensor, v: Tensor, decayed: bool, taylor: bool, normalise: bool) -> None:
    _, time, heads, f = q.shape
    if q.dtype != torch.float32 and q.numel() and time > 1:  # float32 does not go through the matrix units
        key = ("linear_attention", time, heads, f, v.shape[-1], q.dtype, decayed, taylor, normalise)
        args = (tuple(q.shape), v.shape[-1], q.dtype, q.device, decayed, taylor, normalise)
        hopper.check(key, q.device, lambda: _errors(*args))
