"""Causal depthwise convolution in Triton, and the `torch.library` ops around it.

Memory bounds this op, so each pass reads its inputs and writes its outputs once. A program of the forward pass has a
tile of tokens and channels; the k shifted tiles that it sums are read again from the cache, not from memory. The
backward pass has one kernel for all gradients, as they share dy: with dx_t = sum_j w_j dy_{t+j}, the same shifted tiles
give dw_j = sum_t dy_{t+j} x_t. There t begins at -(k - 1) where there is a state, whose gradient is dx before 0. Each
tile's sums are written, and a second kernel adds them in order. No atomics: the same numbers in every run.

Unlike the other ops', the replica axis is an axis of the kernel: each replica has taps of its own.

Letters: R replicas, B batch, T time, D channels, k taps; j is how long ago the token was that a tap reads.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels.replicas import fold, unfold

MAX_TAPS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SUM_WIDTH = 8
"""Channels of a program that adds the tiles' sums: as few as are read at once, to have many programs."""
TOGETHER = 1024
"""Tiles, at most, whose sums it reads at once."""


class Blocks(NamedTuple):
    """What a kernel is compiled for: tokens and channels of a tile, warps in a program, tiles that it goes over."""

    time: int
    width: int
    warps: int
    steps: int = 1


def forward_blocks(width: int) -> Blocks:
    """The forward kernel's blocks, for D channels: the fastest of ten on an H100, a copy's speed but for a tenth."""
    width = min(128, max(16, triton.next_power_of_2(width)))
    return Blocks(2048 // width, width, 4)


def backward_blocks(width: int, slots: int) -> Blocks:
    """The backward kernel's blocks, for D channels and so many sums: the fastest of thirteen on an H100, or near it.

    A thread keeps its own sums of some tiles, as to add those of all threads costs as much as a tile; and a warp alone
    waits for no other. Where its sums would not fit its registers there are more.
    """
    narrow = min(64, max(16, triton.next_power_of_2(width)))
    warps = 4 if width < 64 else 1 if slots <= 4 else 2
    return Blocks(1024 // narrow, narrow, warps, 4 * warps)


@triton.jit(do_not_specialize=["B", "T"])
def short_conv_kernel(
    x, weight, bias, state, y, B, T, x_r, x_b, x_t, w_r, b_r,
    D: tl.constexpr, TAPS: tl.constexpr, STATE: tl.constexpr, BIAS: tl.constexpr,
    TIME: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    parts, times = tl.cdiv(D, WIDTH), tl.cdiv(T, TIME)
    dims = tl.program_id(0) % parts * WIDTH + tl.arange(0, WIDTH)
    begin = tl.program_id(0) // parts % times * TIME
    row = (tl.program_id(0) // parts // times).to(tl.int64)
    replica = row // B
    wide = dims < D
    ahead = tl.arange(0, TIME)
    # Of a tile, offsets fit 32 bits; where it begins does not.
    x += replica * x_r + row % B * x_b + begin.to(tl.int64) * x_t
    weight += replica * w_r + dims * TAPS
    state += row * (TAPS - 1) * D + dims
    acc = tl.zeros([TIME, WIDTH], tl.float32)
    if BIAS:
        acc += tl.load(bias + replica * b_r + dims, mask=wide, other=0.0).to(tl.float32)[None, :]
    for j in tl.static_range(TAPS):
        time = begin + ahead - j
        there = (time >= 0) & (time < T)
        past = tl.load(x + (ahead - j)[:, None] * x_t + dims[None, :], mask=there[:, None] & wide[None, :], other=0.0)
        if STATE and j > 0:
            before = (time < 0)[:, None] & wide[None, :]
            kept = tl.load(state[None, :] + (time + TAPS - 1)[:, None] * D, mask=before, other=0.0)
            past = tl.where(before, kept.to(tl.float32), past.to(tl.float32))
        tap = tl.load(weight + TAPS - 1 - j, mask=wide, other=0.0)
        acc += tap.to(tl.float32)[None, :] * past.to(tl.float32)
    y += (row * T + begin) * D
    tl.store(y + ahead[:, None] * D + dims[None, :], acc, mask=(begin + ahead < T)[:, None] & wide[None, :])


@triton.jit(do_not_specialize=["B", "T", "tiles"])
def short_conv_gradient_kernel(
    grad, x, weight, state, by_x, by_state, sums, B, T, tiles, g_r, g_b, g_t, x_r, x_b, x_t, w_r,
    D: tl.constexpr, TAPS: tl.constexpr, STATE: tl.constexpr, BIAS: tl.constexpr,
    TIME: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    KEPT: tl.constexpr = TAPS - 1 if STATE else 0
    SLOTS: tl.constexpr = TAPS + 1 if BIAS else TAPS
    parts = tl.cdiv(D, WIDTH)
    dims = tl.program_id(0) % parts * WIDTH + tl.arange(0, WIDTH)
    tile = tl.program_id(0) // parts % tiles
    replica = (tl.program_id(0) // parts // tiles).to(tl.int64)
    wide = (dims < D)[None, :]
    x += replica * x_r
    grad += replica * g_r
    weight += replica * w_r + dims * TAPS
    zero = tl.zeros([TIME, WIDTH], tl.float32)
    taps, by_taps, by_bias = (), (), zero  # tuples grow by +: Triton unpacks none
    for j in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + TAPS - 1 - j, mask=dims < D, other=0.0).to(tl.float32)[None, :],)  # noqa: RUF005
        by_taps = by_taps + (zero,)  # noqa: RUF005
    for step in range(STEPS):
        token = (tile * STEPS + step) * TIME + tl.arange(0, TIME)  # of all sequences, one after the other
        batch = (token // (T + KEPT)).to(tl.int64)
        time = (token % (T + KEPT)).to(tl.int64) - KEPT
        inside = batch < B
        there = (inside & (time >= 0))[:, None] & wide
        own = tl.load(x + (batch * x_b + time * x_t)[:, None] + dims[None, :], mask=there, other=0.0).to(tl.float32)
        row = replica * B + batch
        if STATE:
            before = (inside & (time < 0))[:, None] & wide
            kept = (row * KEPT + time + KEPT)[:, None] * D + dims[None, :]
            own = tl.where(before, tl.load(state + kept, mask=before, other=0.0).to(tl.float32), own)
        out = zero
        g_at = (batch * g_b + time * g_t)[:, None] + dims[None, :]
        sums_of = ()
        for j in tl.static_range(TAPS):
            later = (inside & (time + j >= 0) & (time + j < T))[:, None] & wide
            g = tl.load(grad + j * g_t + g_at, mask=later, other=0.0).to(tl.float32)
            out += taps[j] * g
            sums_of = sums_of + (by_taps[j] + g * own,)  # noqa: RUF005
            if BIAS and j == 0:
                by_bias += g
        by_taps = sums_of
        tl.store(by_x + (row * T + time)[:, None] * D + dims[None, :], out, mask=there)
        if STATE:
            tl.store(by_state + kept, out, mask=before)
    sums += (tile.to(tl.int64) + replica * tiles) * SLOTS * D + dims
    for j in tl.static_range(TAPS):
        tl.store(sums + j * D, tl.sum(by_taps[j], 0), mask=dims < D)
    if BIAS:
        tl.store(sums + TAPS * D, tl.sum(by_bias, 0), mask=dims < D)


@triton.jit(do_not_specialize=["tiles"])
def short_conv_sum_kernel(
    sums, by_weight, by_bias, tiles,
    D: tl.constexpr, TAPS: tl.constexpr, SLOTS: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """by_weight[r, d, k - 1 - j] and by_bias[r, d] = the sums of all tiles, in their order."""
    parts = tl.cdiv(D, WIDTH)
    dims = tl.program_id(0) % parts * WIDTH + tl.arange(0, WIDTH)
    slot = tl.program_id(0) // parts % SLOTS
    replica = (tl.program_id(0) // parts // SLOTS).to(tl.int64)
    sums += replica * tiles * SLOTS * D + slot * D
    acc = tl.zeros([TILES, WIDTH], tl.float32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        at = tile.to(tl.int64)[:, None] * (SLOTS * D) + dims[None, :]
        acc += tl.load(sums + at, mask=(tile < tiles)[:, None] & (dims < D)[None, :], other=0.0)
    total = tl.sum(acc, 0)
    if slot < TAPS:
        tl.store(by_weight + (replica * D + dims) * TAPS + TAPS - 1 - slot, total, mask=dims < D)
    else:
        tl.store(by_bias + replica * D + dims, total, mask=dims < D)


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


def _channels_dense(x: Tensor) -> Tensor:
    """A tensor whose last axis lies dense and whose tokens are near enough to count in 32 bits; others any stride."""
    return x if x.stride(-1) == 1 and 0 <= x.stride(-2) < 2**22 else x.contiguous()


def _taps_dense(weight: Tensor) -> Tensor:
    """Taps (R, D, k), or biases (R, D), whose axes after the first lie dense."""
    return weight if weight[0].is_contiguous() else weight.contiguous()


def launch_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, blocks: Blocks | None = None
) -> Tensor:
    """The forward kernel, with `blocks` from the table or given; see `forward`."""
    replicas, batch, time, d = x.shape
    y = x.new_empty(x.shape)
    if not y.numel():
        return y
    x, weight = _channels_dense(x), _taps_dense(weight)
    bias = None if bias is None else _taps_dense(bias)
    state = None if state is None or weight.shape[2] == 1 else state.contiguous()
    b = blocks or forward_blocks(d)
    short_conv_kernel[(replicas * batch * triton.cdiv(time, b.time) * triton.cdiv(d, b.width),)](
        x, weight, x if bias is None else bias, x if state is None else state, y, batch, time, *x.stride()[:3],
        weight.stride(0), 0 if bias is None else bias.stride(0),
        D=d, TAPS=weight.shape[2], STATE=state is not None, BIAS=bias is not None, TIME=b.time, WIDTH=b.width,
        num_warps=b.warps,
    )  # fmt: skip
    return y


def launch_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both kernels of the backward pass, with `blocks` from the table or given; see `gradient`."""
    replicas, batch, time, d = x.shape
    taps = weight.shape[2]
    by_x, by_state, by_weight, by_bias = _like(x, weight, bias, state)
    if not x.numel():
        return by_x, by_state.zero_(), by_weight.zero_(), by_bias.zero_()
    grad, x, weight = _channels_dense(grad), _channels_dense(x), _taps_dense(weight)
    state = None if state is None or taps == 1 else state.contiguous()
    slots = taps if bias is None else taps + 1
    b = blocks or backward_blocks(d, slots)
    tiles = triton.cdiv(batch * (time + (0 if state is None else taps - 1)), b.time * b.steps)
    sums = x.new_empty(replicas, tiles, slots, d, dtype=torch.float32)
    short_conv_gradient_kernel[(replicas * tiles * triton.cdiv(d, b.width),)](
        grad, x, weight, x if state is None else state, by_x, by_state, sums, batch, time, tiles,
        *grad.stride()[:3], *x.stride()[:3], weight.stride(0),
        D=d, TAPS=taps, STATE=state is not None, BIAS=bias is not None, TIME=b.time, WIDTH=b.width,
        STEPS=b.steps, num_warps=b.warps,
    )  # fmt: skip
    short_conv_sum_kernel[(replicas * slots * triton.cdiv(d, SUM_WIDTH),)](
        sums, by_weight, by_bias, tiles,
        D=d, TAPS=taps, SLOTS=slots, TILES=min(TOGETHER, max(16, triton.next_power_of_2(tiles))), WIDTH=SUM_WIDTH,
        num_warps=8,
    )  # fmt: skip
    return by_x, by_state, by_weight, by_bias


def launch_step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """The step kernel; see `step`."""
    replicas, batch, d = x.shape
    taps = weight.shape[2]
    y, after = x.new_empty(x.shape), state.new_empty(state.shape, dtype=torch.promote_types(state.dtype, x.dtype))
    if y.numel():
        x, weight, state = x if x.stride(-1) == 1 else x.contiguous(), _taps_dense(weight), state.contiguous()
        bias = None if bias is None else _taps_dense(bias)
        width = min(128, max(16, triton.next_power_of_2(d)))
        rows = 1024 // width
        short_conv_step_kernel[(replicas * triton.cdiv(batch, rows) * triton.cdiv(d, width),)](
            x, weight, x if bias is None else bias, state, y, after, batch, *x.stride()[:2],
            weight.stride(0), 0 if bias is None else bias.stride(0),
            D=d, TAPS=taps, BIAS=bias is not None, ROWS=rows, WIDTH=width, num_warps=4,
        )  # fmt: skip
    return y, after


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels can take as many taps, and the dtypes; see `limits`."""
    return weight.shape[-1] <= MAX_TAPS and x.dtype in DTYPES and weight.dtype in DTYPES


def limits(x: Tensor, weight: Tensor, state: Tensor | None) -> None:
    """Refuse what the kernels cannot take.

    Raises:
        ValueError: naming the limit.
    """
    if weight.shape[-1] > MAX_TAPS:
        raise ValueError(f"k = {weight.shape[-1]}: the Triton kernel takes 1 to {MAX_TAPS}")
    for name, tensor in (("x", x), ("weight", weight), ("state", state)):
        if tensor is not None and tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}: the Triton kernel takes float32, bfloat16 and float16")
    if x.shape[-1] >= 2**24:
        raise ValueError(f"D = {x.shape[-1]}: the Triton kernel takes less than 2^24")
    if x.numel() // max(x.shape[-1], 1) >= 2**30:
        raise ValueError(f"B T = {x.numel() // x.shape[-1]}: the Triton kernel takes less than 2^30")


def _like(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> tuple[Tensor, ...]:
    """Empty gradients, with no element for what is None."""
    by_state = x.new_empty(*x.shape[:2], 0, x.shape[3]) if state is None else state.new_empty(state.shape)
    by_bias = weight.new_empty(weight.shape[0], 0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), by_state, weight.new_empty(weight.shape), by_bias


@torch.library.custom_op("zoology::short_conv", mutates_args=())
def forward(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> Tensor:
    """x (R, B, T, D), weight (R, D, k), bias (R, D), state (R, B, k - 1, D) -> (R, B, T, D)."""
    return launch_forward(x, weight, bias, state)


@forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("zoology::short_conv_gradient", mutates_args=())
def gradient(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, state, weight and bias for the gradient (R, B, T, D) of y; with no element for None."""
    return launch_backward(grad, x, weight, bias, state)


@gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> tuple[Tensor, ...]:
    return _like(x, weight, bias, state)


@torch.library.custom_op("zoology::short_conv_step", mutates_args=())
def step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """x (R, B, D), weight (R, D, k), bias (R, D), state (R, B, k - 1, D) -> y (R, B, D), the state after it."""
    return launch_step(x, weight, bias, state)


@step.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape, dtype=torch.promote_types(state.dtype, x.dtype))


def _setup(ctx: Any, inputs: tuple[Tensor | None, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, state = ctx.saved_tensors
    by_x, by_state, by_weight, by_bias = gradient(grad, x, weight, bias, state)
    return by_x, by_weight, None if bias is None else by_bias, None if state is None else by_state


def _step_backward(ctx: Any, grad: Tensor, by_after: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, state = ctx.saved_tensors
    by_x, by_state, by_weight, by_bias = gradient(grad.unsqueeze(2), x.unsqueeze(2), weight, bias, state)
    by_x = by_x.squeeze(2)
    if by_after.shape[2]:  # the state moves on by one token
        by_x = by_x + by_after[:, :, -1].to(by_x.dtype)
        by_state = by_state + torch.cat((torch.zeros_like(by_after[:, :, :1]), by_after[:, :, :-1]), dim=2)
    return by_x, by_weight, None if bias is None else by_bias, by_state.to(state.dtype)


def _no_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("short_conv has no second derivative in Triton: use implementation='reference'")


forward.register_autograd(_backward, setup_context=_setup)
step.register_autograd(_step_backward, setup_context=_setup)
gradient.register_autograd(_no_second)


def _folded(info: Any, in_dims: tuple[Any, ...], tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    pairs = zip(tensors, in_dims, strict=True)
    return [None if x is None else fold(x, dim, info.batch_size) for x, dim in pairs]


@forward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Tensor, int]:
    return unfold(forward(*_folded(info, in_dims, tensors)), info.batch_size), 0


@gradient.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    out = gradient(*_folded(info, in_dims, tensors))
    return tuple(unfold(x, info.batch_size) for x in out), (0, 0, 0, 0)


@step.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    out = step(*_folded(info, in_dims, tensors))
    return tuple(unfold(x, info.batch_size) for x in out), (0, 0)
