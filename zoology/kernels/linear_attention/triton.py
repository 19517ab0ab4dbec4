"""The `torch.library` ops around the Triton kernels of linear attention.

The op's batch is whatever is folded into it: `torch.vmap` puts the replicas there.

Letters: B batch, T time, H heads, f width of q and k, F that of phi, dv width of v; P rows of decays, each of B / P
rows of the batch.
"""

from typing import Any

import torch
from torch import Tensor

from zoology.kernels import hopper
from zoology.kernels.linear_attention.exact import exact
from zoology.kernels.linear_attention.launch import Options, States, launch_backward, launch_forward, width
from zoology.kernels.linear_attention.monomials import kept
from zoology.kernels.replicas import fold, fold_all, unfold

MAX_KEY, MAX_VALUE = 256, 128
CHUNK, MAX_CHUNK = 128, 2048
"""Tokens of a chunk of a longer sequence, of few features; and of any, as one program sums the decays of a chunk."""


def _chunk(f: int, taylor: bool) -> int:
    """C of a longer sequence. The more features there are, the longer, as each chunk's state is written and read."""
    return min(max(2 * CHUNK, 1 << (width(f, True) - 1).bit_length()), 8 * CHUNK) if taylor else CHUNK


def chunk_of(time: int, f: int, dv: int, taylor: bool, carried: bool, chunk_size: int | None) -> int:
    """C: the whole sequence, where the scores of all pairs cost less than chunks and their states do.

    A pair costs f + dv products; a token of a chunk half a chunk of pairs and 2 F dv for its state, at two thirds of
    the speed (measured on an H100). What begins or ends with a state has that work in any case.
    """
    if chunk_size is None:
        whole = 256 if carried else int(1.6 * CHUNK + 6.4 * width(f, taylor) * dv / (f + dv))
        chunk_size = time if time <= min(whole, MAX_CHUNK) else _chunk(f, taylor)
    return max(1, min(chunk_size, time, MAX_CHUNK))


def saves(f: int, dv: int, taylor: bool, chunk: int) -> bool:
    """Whether the backward pass gets the states between chunks from the forward pass: where they take no more than half
    of what q, k, v and o do. Elsewhere it makes them again."""
    return kept(f, taylor) * dv <= chunk * (f + dv)


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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    kv: Tensor | None,
    z: Tensor | None,
    taylor: bool,
    normalise: bool,
    eps: float,
    chunk: int,
    keep: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k (B, T, H, f), v (B, T, H, dv), all of one dtype; log_decay (P, T, H), where P divides B, or None; the state
    before them, kv (B, H, F, dv) and z (B, H, F) or (B, H, 0), or None twice.

    Returns:
        o (B, T, H, dv); one over its sums of weights, (B, H, T) in float32; the state after, in float32, whose F is 0
        unless `keep`; and what the backward pass takes of the states between chunks, (B, H, N + 1, F', dv) and (B, H,
        N + 1, F'), where N + 1 is 0 unless `save` and there are any. Of what is not normalised there are no sums and no
        z: T, F and F' are 0 there.
    """
    options = Options(taylor, normalise, eps, chunk)
    empty = _outputs(q, v, kv, options, keep, save)
    if not v.numel():
        return empty[0], empty[1], *_states_of_none(q, v, kv, z, options, keep), *empty[4:]
    _check(q, v, log_decay is not None, kv is not None or keep, options)
    o, share, end, past = launch_forward(q, k, v, log_decay, kv, z, options, keep)
    return o, share if normalise else empty[1], *(end or empty[2:4]), *((save and past) or empty[4:])


def _outputs(
    q: Tensor, v: Tensor, kv: Tensor | None, options: Options, keep: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, time, heads, f = q.shape
    dv, one = v.shape[-1], 1 if options.normalise else 0
    nf, between = width(f, options.taylor) if keep else 0, kept(f, options.taylor)
    chunks = -(-time // options.chunk)
    number = chunks + 1 if save and v.numel() and (chunks > 1 or keep or kv is not None) else 0
    narrow = torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32
    shapes = ((time * one,), (nf, dv), (nf * one,), (number, between, dv), (number, between * one))
    dtypes = (torch.float32, torch.float32, torch.float32, narrow, torch.float32)
    rest = (v.new_empty(batch, heads, *shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    o, share, end, end_z, past, past_z = v.new_empty(v.shape), *rest
    return o, share, end, end_z, past, past_z


def _states_of_none(
    q: Tensor, v: Tensor, kv: Tensor | None, z: Tensor | None, options: Options, keep: bool
) -> tuple[Tensor, Tensor]:
    """The state after no token is that before."""
    after = _outputs(q, v, kv, options, keep, False)[2:4]
    for x, before in zip(after, (kv, z), strict=True):
        if before is None or not keep:
            x.zero_()
        else:
            x.copy_(before)
    return after[0], after[1]


@forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, kv: Tensor | None, z: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    *options, keep, save = others
    return _outputs(q, v, kv, Options(*options), keep, save)


@torch.library.custom_op("zoology::linear_attention_gradient", mutates_args=())
def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    kv: Tensor | None,
    z: Tensor | None,
    o: Tensor,
    share: Tensor,
    past: Tensor,
    past_z: Tensor,
    dkv: Tensor | None,
    dz: Tensor | None,
    taylor: bool,
    normalise: bool,
    eps: float,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v in their dtype, and in float32 of log_decay, (0, T, H) where there is none, and of kv
    and z, whose F is 0 where there are none. `past` and `past_z` are `forward`'s; `dkv` and `dz` the gradients of the
    state after, or None twice."""
    options = Options(taylor, normalise, eps, chunk)
    _check(q, v, log_decay is not None, kv is not None or dkv is not None, options)
    out = _gradients(q, k, v, log_decay, kv, z)
    if not v.numel():
        for x, given in zip(out, (None, None, None, None, dkv, dz), strict=True):
            x.zero_() if given is None or not x.numel() else x.copy_(given)
        return out
    saved = States(past, past_z) if past.shape[2] else None
    dq, dk, dv, dg, first = launch_backward(do, q, k, v, log_decay, kv, z, o, share, saved, dkv, dz, options)
    return dq, dk, dv, out[3] if dg is None else dg, *(first or out[4:])


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, kv: Tensor | None, z: Tensor | None
) -> tuple[Tensor, ...]:
    batch, time, heads, _ = q.shape
    shapes = (
        (0 if log_decay is None else log_decay.shape[0], time, heads),
        (batch, heads, 0, v.shape[-1]) if kv is None else kv.shape,
        (batch, heads, 0) if z is None else z.shape,
    )
    rest = (q.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return *(x.new_empty(x.shape) for x in (q, k, v)), *rest


@backward.register_fake
def _(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    kv: Tensor | None,
    z: Tensor | None,
    *others: Any,
) -> tuple[Tensor, ...]:
    return _gradients(q, k, v, log_decay, kv, z)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_decay, kv, z, *ctx.options, ctx.keep, _ = inputs
    ctx.save_for_backward(q, k, v, log_decay, kv, z, *output[:2], *output[4:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, do: Tensor | None, other: Tensor | None, dkv: Tensor | None, dz: Tensor | None, *others: Tensor | None
) -> tuple[Tensor | None, ...]:
    if any(x is not None for x in (other, *others)):
        raise RuntimeError("linear_attention has no second derivative in Triton: use implementation='reference'")
    q, k, v, log_decay, kv, z, o, share, past, past_z = ctx.saved_tensors
    if not ctx.keep or (dkv is None and dz is None):
        if do is None:
            return (None,) * 12
        dkv = dz = None
    else:
        batch, _, heads, f = q.shape
        nf = width(f, ctx.options[0])
        dkv = v.new_zeros(batch, heads, nf, v.shape[-1], dtype=torch.float32) if dkv is None else dkv
        dz = v.new_zeros(batch, heads, nf if ctx.options[1] else 0, dtype=torch.float32) if dz is None else dz
    do = torch.zeros_like(o) if do is None else do
    out = backward(do, q, k, v, log_decay, kv, z, o, share, past, past_z, dkv, dz, *ctx.options)
    wide = (None if x is None else y.to(x.dtype) for x, y in zip((log_decay, kv, z), out[3:], strict=True))
    return *out[:3], *wide, None, None, None, None, None, None


forward.register_autograd(_backward, setup_context=_setup)


@forward.register_vmap
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    kv: Tensor | None,
    z: Tensor | None,
    *options: Any,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    if log_decay is not None and (in_dims[3] is not None or log_decay.shape[0] > 1):  # else one row for all replicas
        log_decay = fold(log_decay, in_dims[3], size)
    q, k, v, kv, z = fold_all((q, k, v, kv, z), in_dims[:3] + in_dims[4:6], size)
    return tuple(unfold(x, size) for x in forward(q, k, v, log_decay, kv, z, *options)), (0,) * 6


@backward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    tensors = fold_all(args[:13], in_dims[:13], info.batch_size)
    return tuple(unfold(x, info.batch_size) for x in backward(*tensors, *args[13:])), (0,) * 6


def _errors(
    shape: tuple[int, ...], dv: int, dtype: torch.dtype, device: torch.device, decayed: bool, carried: bool,
    options: Options,
) -> dict[str, float]:  # fmt: skip
    """Relative errors against float64 of two rows of the batch. Weights are positive, and gradients do not cancel.

    Where a state is carried, it is 0 before and nothing depends on it after: what is carried between chunks is.
    """
    _, time, heads, f = shape
    rng = torch.Generator(device).manual_seed(0)
    q, k, v, do = (torch.randn(2, time, heads, n, generator=rng, device=device) for n in (f, f, dv, dv))
    if not options.taylor:
        q, k = q.abs(), k.abs()
    q, k, v, do = (x.to(dtype) for x in (q, k, v, do))
    g = torch.rand(2, time, heads, generator=rng, device=device) * -0.2 if decayed else None
    state: list[Tensor | None] = [None, None]
    if carried:
        nf = width(f, options.taylor)
        shapes = (nf, dv), (nf if options.normalise else 0,)
        state = [torch.zeros(2, heads, *shape, device=device) for shape in shapes]
    o, share, _, past = launch_forward(q, k, v, g, *state, options, carried)
    got = (o, *launch_backward(do, q, k, v, g, *state, o, share, past, *state, options)[:4])
    names = ("the output", *(f"the gradient of {x}" for x in ("q", "k", "v", "log_decay")))
    want = exact(do, q, k, v, g, options.taylor, options.normalise, options.eps)
    sizes = [0.0 if x is None else float(x.norm()) for x in want]
    sizes[1] = sizes[2] = max(sizes[1:3])  # divided by its sum, a weight of one feature does not depend on q
    pairs = zip(names, got, want, sizes, strict=True)
    return {name: float((a.double() - b).norm()) / size for name, a, b, size in pairs if b is not None}


def _check(q: Tensor, v: Tensor, decayed: bool, carried: bool, options: Options) -> None:
    batch, time, heads, f = q.shape
    if q.dtype != torch.float32 and time > 1:  # float32 does not go through the matrix units
        # Some chunks, and a piece of one; not more pairs than there is room for in float64; and no gradient that is
        # all but 0, as that of a single positive feature is. Blocks that are not all full are another kernel.
        heads = min(heads, 4)
        if time > options.chunk:
            options = options._replace(chunk=min(options.chunk, 2 * CHUNK))
            time = min(time, 2 * options.chunk + options.chunk // 2 - (time % 64 > 0))
        else:
            time = max(min(time, 1024), 16)
            options = options._replace(chunk=time)
        f, dv = max(f, 4), max(v.shape[-1], 4)
        key = ("linear_attention", time, heads, f, dv, q.dtype, decayed, carried, options)
        args = ((batch, time, heads, f), dv, q.dtype, q.device, decayed, carried, options)
        hopper.check(key, q.device, lambda: _errors(*args))
