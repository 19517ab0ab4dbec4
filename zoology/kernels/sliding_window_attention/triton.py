"""Attention over a window in Triton, and the `torch.library` ops around it.

FlashAttention (arXiv:2205.14135), whose loops go over the blocks that a window reaches and no others: a program of the
forward pass has a block of queries of one head and meets the keys from w - 1 before its first. The backward pass has
one kernel with a block of queries, for dq, and one with a block of keys, for dk and dv. No atomics: the same numbers in
every run.

Hazard: rounded probabilities are a product's left operand from registers, which the ptxas of CUDA 12 can miscompile on
Hopper. `zoology.kernels.hopper` checks at first use.

Letters: B batch, T queries, S keys (T and the c in the cache before them), H heads, d head width, w window.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels import hopper
from zoology.kernels.replicas import fold_all, unfold

MAX_WIDTH = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOG2E = 1.4426950408889634


class Blocks(NamedTuple):
    """What the kernels are compiled for: queries and keys in a block, warps in a program."""

    queries: int
    keys: int
    warps: int


def forward_blocks(width: int, dtype: torch.dtype) -> Blocks:
    """The forward kernel's blocks, for a head width that is a power of two: of eleven, the fastest or near it on an
    H100 at eight shapes of a sweep."""
    if dtype == torch.float32:
        return Blocks(32, 32, 4)
    return Blocks(32, 32, 2) if width <= 32 else Blocks(64, 32, 4)


def backward_blocks(width: int, dtype: torch.dtype) -> Blocks:
    """The backward kernels' blocks; see `forward_blocks`."""
    return Blocks(32, 32, 4 if dtype == torch.float32 else 2)


@triton.jit
def _load(x, first, index, limit, stride, dims, D: tl.constexpr):
    """Rows first + index of (limit, D) at a pointer, 0 beyond the limit."""
    row = (first + index).to(tl.int64)
    there = (row < limit)[:, None] & (dims < D)[None, :]
    return tl.load(x + (row * stride)[:, None] + dims[None, :], mask=there, other=0.0)


@triton.jit(do_not_specialize=["T", "S", "H", "window"])
def sliding_window_kernel(
    q, k, v, o, log_sum, T, S, H, window, scale, q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(T, QUERIES)
    first = tl.program_id(0) % blocks * QUERIES
    head = tl.program_id(0) // blocks % H
    batch = (tl.program_id(0) // blocks // H).to(tl.int64)
    rows, columns, dims = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    query = _load(q + batch * q_b + head * q_h, first, rows, T, q_t, dims, D)
    position = first + S - T + rows
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, WIDTH], tl.float32)
    begin = tl.maximum(first + S - T - window + 1, 0)
    for start in range(begin, tl.minimum(first + QUERIES, T) + S - T, KEYS):
        key = _load(k, start, columns, S, k_t, dims, D)
        value = _load(v, start, columns, S, v_t, dims, D)
        ago = position[:, None] - start - columns[None, :]
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where((ago >= 0) & (ago < window), scores, float("-inf"))
        new = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # nothing seen yet
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(value.dtype), value, acc * shrink[:, None], input_precision="ieee")
        top = new
    there = first + rows < T
    at = (batch * T + first + rows) * H + head
    tl.store(o + at[:, None] * D + dims[None, :], acc / total[:, None], mask=there[:, None] & (dims < D)[None, :])
    tl.store(log_sum + at, top + tl.log2(total), mask=there)


@triton.jit(do_not_specialize=["T", "S", "H", "window"])
def sliding_window_query_kernel(
    q, k, v, o, grad, log_sum, by_q, delta, T, S, H, window, scale, back,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """by_q, and delta = dy . y of each query, which the kernel of the keys needs."""
    blocks = tl.cdiv(T, QUERIES)
    first = tl.program_id(0) % blocks * QUERIES
    head = tl.program_id(0) // blocks % H
    batch = (tl.program_id(0) // blocks // H).to(tl.int64)
    rows, columns, dims = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    query = _load(q + batch * q_b + head * q_h, first, rows, T, q_t, dims, D)
    g = _load(grad + batch * g_b + head * g_h, first, rows, T, g_t, dims, D)
    out = _load(o + batch * T * H * D + head * D, first, rows, T, H * D, dims, D)
    there = first + rows < T
    at = (batch * T + first + rows) * H + head
    own = tl.sum(g.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta + at, own, mask=there)
    bound = tl.load(log_sum + at, mask=there, other=float("inf"))
    position = first + S - T + rows
    acc = tl.zeros([QUERIES, WIDTH], tl.float32)
    begin = tl.maximum(first + S - T - window + 1, 0)
    for start in range(begin, tl.minimum(first + QUERIES, T) + S - T, KEYS):
        key = _load(k, start, columns, S, k_t, dims, D)
        value = _load(v, start, columns, S, v_t, dims, D)
        ago = position[:, None] - start - columns[None, :]
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        p = tl.where((ago >= 0) & (ago < window), tl.exp2(scores - bound[:, None]), 0.0)
        slope = p * (tl.dot(g, tl.trans(value), input_precision="ieee") - own[:, None])
        acc = tl.dot(slope.to(key.dtype), key, acc, input_precision="ieee")
    tl.store(by_q + at[:, None] * D + dims[None, :], acc * back, mask=there[:, None] & (dims < D)[None, :])


@triton.jit(do_not_specialize=["T", "S", "H", "window"])
def sliding_window_key_kernel(
    q, k, v, grad, log_sum, delta, by_k, by_v, T, S, H, window, scale, back,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(S, KEYS)
    first = tl.program_id(0) % blocks * KEYS
    head = tl.program_id(0) // blocks % H
    batch = (tl.program_id(0) // blocks // H).to(tl.int64)
    rows, columns, dims = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    q += batch * q_b + head * q_h
    grad += batch * g_b + head * g_h
    key = _load(k + batch * k_b + head * k_h, first, columns, S, k_t, dims, D)
    value = _load(v + batch * v_b + head * v_h, first, columns, S, v_t, dims, D)
    of_key = tl.zeros([KEYS, WIDTH], tl.float32)
    of_value = tl.zeros([KEYS, WIDTH], tl.float32)
    begin = tl.maximum(first - (S - T), 0)  # the query at the first key
    for start in range(begin, tl.minimum(first + KEYS - 1 + window - (S - T), T), QUERIES):
        query = _load(q, start, rows, T, q_t, dims, D)
        g = _load(grad, start, rows, T, g_t, dims, D)
        there = start + rows < T
        at = (batch * T + start + rows) * H + head
        bound = tl.load(log_sum + at, mask=there, other=float("inf"))
        own = tl.load(delta + at, mask=there, other=0.0)
        ago = (start + S - T + rows)[None, :] - first - columns[:, None]
        scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scale
        p = tl.where((ago >= 0) & (ago < window), tl.exp2(scores - bound[None, :]), 0.0)
        of_value = tl.dot(p.to(g.dtype), g, of_value, input_precision="ieee")
        slope = p * (tl.dot(value, tl.trans(g), input_precision="ieee") - own[None, :])
        of_key = tl.dot(slope.to(query.dtype), query, of_key, input_precision="ieee")
    there = (first + columns < S)[:, None] & (dims < D)[None, :]
    at = ((batch * S + first + columns) * H + head)[:, None] * D + dims[None, :]
    tl.store(by_k + at, of_key * back, mask=there)
    tl.store(by_v + at, of_value, mask=there)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 and 0 <= x.stride(1) < 2**24 else x.contiguous()


def _options(q: Tensor, table: Callable[[int, torch.dtype], Blocks], blocks: Blocks | None) -> dict[str, int]:
    d = q.shape[-1]
    width = max(16, triton.next_power_of_2(d))
    b = blocks or table(width, q.dtype)
    return {"D": d, "QUERIES": b.queries, "KEYS": b.keys, "WIDTH": width, "num_warps": b.warps}


def launch_forward(q: Tensor, k: Tensor, v: Tensor, window: int, blocks: Blocks | None = None) -> tuple[Tensor, Tensor]:
    """The forward kernel, with `blocks` from the table or given; see `forward`."""
    batch, time, heads, d = q.shape
    o, log_sum = q.new_empty(q.shape), q.new_empty(batch, time, heads, dtype=torch.float32)
    if o.numel():
        q, k, v = _rows(q), _rows(k), _rows(v)
        options = _options(q, forward_blocks, blocks)
        sliding_window_kernel[(batch * heads * triton.cdiv(time, options["QUERIES"]),)](
            q, k, v, o, log_sum, time, k.shape[1], heads, window, d**-0.5 * LOG2E,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], **options,
        )  # fmt: skip
    return o, log_sum


def launch_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    log_sum: Tensor,
    window: int,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both kernels of the backward pass, with `blocks` from the table or given; see `gradient`."""
    batch, time, heads, d = q.shape
    by_q, by_k, by_v = (x.new_empty(x.shape) for x in (q, k, v))
    if not q.numel():
        return by_q, by_k.zero_(), by_v.zero_()
    grad, q, k, v = _rows(grad), _rows(q), _rows(k), _rows(v)
    o, log_sum = o.contiguous(), log_sum.contiguous()
    delta = log_sum.new_empty(log_sum.shape)
    options, keys = _options(q, backward_blocks, blocks), k.shape[1]
    rest = (time, keys, heads, window, d**-0.5 * LOG2E, d**-0.5)
    rest += tuple(s for x in (q, k, v, grad) for s in x.stride()[:3])
    sliding_window_query_kernel[(batch * heads * triton.cdiv(time, options["QUERIES"]),)](
        q, k, v, o, grad, log_sum, by_q, delta, *rest, **options
    )
    sliding_window_key_kernel[(batch * heads * triton.cdiv(keys, options["KEYS"]),)](
        q, k, v, grad, log_sum, delta, by_k, by_v, *rest, **options
    )
    return by_q, by_k, by_v


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels can take these heads and dtypes; see `limits`."""
    return all(x.dtype == tensors[0].dtype and x.dtype in DTYPES and 1 <= x.shape[-1] <= MAX_WIDTH for x in tensors)


def limits(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> None:
    """Refuse what the kernels cannot take.

    Raises:
        ValueError: naming the limit.
    """
    if dropout:
        raise ValueError(f"dropout = {dropout}: the Triton kernel takes 0")
    if not 1 <= q.shape[-1] <= MAX_WIDTH:
        raise ValueError(f"d = {q.shape[-1]}: the Triton kernel takes 1 to {MAX_WIDTH}")
    if not takes(q, k, v):
        raise ValueError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: "
            "the Triton kernel takes float32, bfloat16 and float16, all alike"
        )
    if k.shape[0] * k.shape[1] * k.shape[2] >= 2**30:
        raise ValueError(f"B S H = {k.shape[0] * k.shape[1] * k.shape[2]}: the Triton kernel takes less than 2^30")


def _errors(d: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Relative errors of output and gradients on a small instance, against float64. Squares in the sine leave q and k
    without anything in common: where all scores are alike, gradients are differences of rounding."""
    time, window = 200, 37
    with torch.inference_mode(False), torch.enable_grad():
        ramp = torch.arange(2 * time * 3 * d, device=device, dtype=torch.float64).view(2, time, 3, d)
        q, k, v, grad = ((ramp * ramp * rate).sin().mul(1.5).to(dtype) for rate in (1.7, 2.3, 0.9, 3.1))
        o, log_sum = launch_forward(q, k, v, window)
        got = (o, *launch_backward(grad, q, k, v, o, log_sum, window))
        exact = [x.double().requires_grad_() for x in (q, k, v)]
        token = torch.arange(time, device=device)
        ago = token[:, None] - token
        scores = torch.einsum("bthd,bshd->bhts", *exact[:2]) * d**-0.5
        p = scores.masked_fill((ago < 0) | (ago >= window), -torch.inf).softmax(-1)
        want = torch.einsum("bhts,bshd->bthd", p, exact[2])
        wants = (want.detach(), *torch.autograd.grad(want, exact, grad.double()))
    names = ("the output", "the gradient of q", "the gradient of k", "the gradient of v")
    return {n: float((a.double() - b).norm() / b.norm()) for n, a, b in zip(names, got, wants, strict=True)}


def _check(q: Tensor) -> None:
    d, dtype, device = q.shape[-1], q.dtype, q.device
    if dtype != torch.float32:  # float32 does not go through the matrix units
        hopper.check(f"sliding_window_attention, d = {d}, {dtype}", device, lambda: _errors(d, dtype, device))


@torch.library.custom_op("zoology::sliding_window_attention", mutates_args=())
def forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """q (B, T, H, d), k and v (B, S, H, d) -> o (B, T, H, d), and log2 of the sum of exp(scores), (B, T, H) float32."""
    _check(q)
    return launch_forward(q, k, v, window)


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("zoology::sliding_window_attention_gradient", mutates_args=())
def gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, log_sum: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v for the gradient (B, T, H, d) of o."""
    _check(q)
    return launch_backward(grad, q, k, v, o, log_sum, window)


@gradient.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, log_sum: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, by_log_sum: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    return *gradient(grad, *ctx.saved_tensors, ctx.window), None


def _no_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("sliding_window_attention has no second derivative in Triton: use implementation='reference'")


forward.register_autograd(_backward, setup_context=_setup)
gradient.register_autograd(_no_second)


@forward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Any, ...]:
    folded = fold_all((q, k, v), in_dims[:3], info.batch_size)
    return tuple(unfold(x, info.batch_size) for x in forward(*folded, window)), (0, 0)


@gradient.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, ...]:
    folded = fold_all(args[:-1], in_dims[:-1], info.batch_size)
    return tuple(unfold(x, info.batch_size) for x in gradient(*folded, args[-1])), (0, 0, 0)
