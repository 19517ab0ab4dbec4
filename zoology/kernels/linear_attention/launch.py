"""How the Triton kernels of linear attention are put together and launched.

A sequence is cut into chunks. `between` makes the state before each, and `inside` all that happens in them. A sequence
that is one chunk, from its beginning, needs no state.

Block sizes come from a table, not from timing: another block size rounds otherwise.

Letters: B batch, T time, H heads, N chunks, f width of q and k, dv width of v, NF features of a key; P rows of decays,
each of B / P rows of the batch.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoology.kernels.linear_attention import between, inside
from zoology.kernels.linear_attention.monomials import kept, period, second_factors
from zoology.kernels.replicas import register_limit


class Blocks(NamedTuple):
    """What a kernel is compiled for: a program's rows, tokens that they meet at a time, warps, blocks in flight, and
    registers of a thread at most, so that more programs are there at a time."""

    rows: int
    cols: int
    warps: int
    stages: int
    registers: int | None = None


class Options(NamedTuple):
    """What the function is: its weights, whether they are divided by their sum, and tokens in a chunk."""

    taylor: bool
    normalise: bool
    eps: float
    chunk: int


class States(NamedTuple):
    """Sums of phi(k) v^T (..., NF, dv) and of phi(k) (..., NF)."""

    kv: Tensor
    z: Tensor


def padded(n: int) -> int:
    """The width that a kernel computes with: products take no less than 16."""
    return max(16, triton.next_power_of_2(n))


def width(f: int, taylor: bool) -> int:
    """NF."""
    return (f + 1) * (f + 2) // 2 if taylor else f


def _registers(most: int, f: int, dv: int, dtype: torch.dtype) -> int | None:
    """`most` where little or nothing spills then: in bfloat16, as of float16 the factors are in float32."""
    return most if max(f, dv) <= 64 and dtype == torch.bfloat16 else None


def output_blocks(length: int, f: int, dv: int, dtype: torch.dtype, decayed: bool) -> Blocks:
    """The forward kernel's blocks, for a chunk of `length` tokens."""
    if dtype == torch.float32:
        return Blocks(min(32, padded(length)), 32 if max(f, dv) <= 128 else 16, 4, 1)
    cols = 64 if f <= 128 and not decayed else 32
    stages = 3 if max(f, dv) <= 64 else 2 if f <= 128 else 1
    return Blocks(min(64, padded(length)), min(cols, padded(length)), 4, stages, _registers(128, f, dv, dtype))


def gradient_blocks(length: int, f: int, dv: int, dtype: torch.dtype) -> Blocks:
    """The blocks of both gradient kernels."""
    if dtype == torch.float32:
        return Blocks(min(32, padded(length)), 32 if max(f, dv) <= 64 else 16, 4, 1)
    if f > 128:
        return Blocks(min(32, padded(length)), min(32, padded(length)), 4, 1)
    stages, registers = 3 if f <= 32 else 2, _registers(128, f, dv, dtype)
    return Blocks(min(64, padded(length)), min(32, padded(length)), 4, stages, registers)


def whole_blocks(length: int, f: int, dv: int, dtype: torch.dtype) -> Blocks | None:
    """The blocks of the kernel that makes all gradients of a chunk at once, or None where the chunk is too long."""
    limit = 32 if dtype == torch.float32 else 128 if f <= 32 else 64
    if length > limit or f > 128:
        return None
    rows = padded(length)
    return Blocks(rows, rows, 8 if rows > 64 else 4, 1)


def state_blocks(nf: int, dv: int, dtype: torch.dtype) -> Blocks:
    """Tokens at a time (rows), features of a program (cols)."""
    if dtype == torch.float32:
        return Blocks(16, 32 if nf > 16 else 16, 4, 1)
    if nf > 64:  # 64 rows are what a product of four warps has at least
        return Blocks(64, 64, 4, 3 if dv <= 64 else 2, _registers(168, 1, dv, dtype))
    return Blocks(64, min(32, padded(nf)), 4, 3 if dv <= 64 else 2)


def feature_tile(nf: int) -> int:
    """Features that a program makes at a time, of Taylor's."""
    return min(32, padded(nf))


def segments(chunks: int, programs: int, processors: int) -> int:
    """Pieces of a sequence whose sums are made side by side: as many of at least four chunks as fill the places for
    programs, three on each processor."""
    return max(1, min(3 * processors // programs, chunks // 4))


class Problem:
    """The arguments that all kernels share, for one piece of work."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, options: Options):
        self.q, self.k, self.v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        self.batch, self.time, self.heads, self.f = q.shape
        self.dv, self.nf, self.kept = v.shape[-1], width(self.f, options.taylor), kept(self.f, options.taylor)
        self.options, self.chunk = options, min(options.chunk, self.time)
        self.chunks = triton.cdiv(self.time, self.chunk)
        self.decayed = log_decay is not None
        self.rows = 0 if log_decay is None else log_decay.shape[0]
        self.second = second_factors(self.f, q.dtype, q.device) if options.taylor else q
        self.near, self.rest = (q, q) if log_decay is None else self._cumulative(log_decay)
        # A weight does not stay within float16 as its factors do; TF32 has the same digits, and the range.
        self.narrow = torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32

    def float32(self, *shape: int) -> Tensor:
        return self.q.new_empty(shape, dtype=torch.float32)

    def tokens(self, there: bool) -> Tensor:
        """One number for each token and head, if there."""
        return self.float32(self.batch, self.heads, self.time) if there else self.float32(0)

    def states(self, *number: int, width: int, dtype: torch.dtype = torch.float32) -> States:
        """Room for `number` states of each head, of `width` features."""
        kv = self.q.new_empty(self.batch, self.heads, *number, width, self.dv, dtype=dtype)
        return States(kv, self.float32(self.batch, self.heads, *number, width if self.options.normalise else 0))

    def grid(self, rows: int) -> tuple[int]:
        return (self.batch * self.heads * self.chunks * triton.cdiv(self.chunk, rows),)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.time, self.heads, self.chunk, self.batch // max(self.rows, 1)

    @property
    def numbers(self) -> tuple[Any, ...]:
        strides = (s for x in (self.q, self.k, self.v) for s in x.stride()[:3])
        return (*self.sizes, *strides, self.f**-0.5 if self.options.taylor else 1.0, self.options.eps)

    def even(self, block: int) -> bool:
        """Whether blocks of so many tokens are all full."""
        return self.time % block == 0 and self.chunk % block == 0

    def constants(self, blocks: Blocks) -> dict[str, Any]:
        return {
            "F": self.f,
            "FW": padded(self.f),
            "V": self.dv,
            "VW": padded(self.dv),
            "ROWS": blocks.rows,
            "TAYLOR": self.options.taylor,
            "NORMALISE": self.options.normalise,
            "DECAY": self.decayed,
            "NARROW": tl.bfloat16 if self.narrow == torch.bfloat16 else tl.float32,
            "EVEN": self.even(max(blocks.rows, blocks.cols)),
            "PRECISION": "tf32" if self.q.dtype == torch.float16 else "ieee",
            "num_warps": blocks.warps,
            "num_stages": blocks.stages,
            **register_limit(blocks.registers),
        }

    def of_features(self) -> dict[str, int]:
        """How many of the features are made at a time: all that are loaded, without a map."""
        tile = feature_tile(self.kept) if self.options.taylor else padded(self.f)
        return {"PERIOD": period(self.f), "KEPT": self.kept, "FT": tile}

    def _cumulative(self, log_decay: Tensor) -> tuple[Tensor, Tensor]:
        near, rest = (self.float32(self.rows, self.heads, self.time) for _ in range(2))
        between.cumulative_kernel[(self.rows * self.heads * self.chunks,)](
            log_decay, near, rest, *self.sizes[:3], *log_decay.stride(), BLOCK=triton.next_power_of_2(self.chunk)
        )
        return near, rest

    def run_states(
        self,
        x: Tensor,
        y: Tensor,
        start: States | None,
        keep: bool,
        share: Tensor | None = None,
        delta: Tensor | None = None,
        reverse: bool = False,
        blocks: Blocks | None = None,
        pieces: int | None = None,
    ) -> tuple[States, States]:
        """The states around each chunk; and if `keep` the last, in float32, as it is returned."""
        b = blocks or state_blocks(self.kept, self.dv, self.q.dtype)
        tiles = triton.cdiv(self.kept, b.cols)
        programs = self.batch * self.heads * tiles
        cuda = x.device.type == "cuda"
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count if cuda else 8
        per = triton.cdiv(self.chunks, pieces or segments(self.chunks, programs, processors))
        count = triton.cdiv(self.chunks, per)
        out = self.states(self.chunks if reverse else self.chunks + 1, width=self.kept, dtype=self.narrow)
        end = self.states(width=self.nf) if keep else out
        sums = self.states(count, width=self.kept) if count > 1 else out
        fades = self.float32(self.batch, self.heads, count)
        constants = {
            **self.constants(b),
            "EVEN": self.even(b.rows),
            "FT": b.cols,
            "PERIOD": period(self.f),
            "KEPT": self.kept,
            "NF": self.nf,
        }
        between.states_kernel[(programs * count,)](
            x, y, self.near, self.rest, out.z if share is None else share, out.z if delta is None else delta,
            *(start or out), *sums, fades, *out, *end, *self.sizes,
            *x.stride()[:3], *y.stride()[:3], per, count,
            REVERSE=reverse, SPLIT=count > 1, START=start is not None, END=keep, **constants,
        )  # fmt: skip
        if count > 1:
            between.carry_kernel[(programs * (self.chunks + 1),)](
                self.near, self.rest, *sums, fades, *out, *end, *self.sizes, per, count,
                FT=b.cols, REVERSE=reverse, END=keep, NF=self.nf, **self.of_states(),
            )  # fmt: skip
        return out, end

    def of_states(self) -> dict[str, Any]:
        """Constants of the kernels that read states alone."""
        names = ("F", "V", "VW", "TAYLOR", "NORMALISE", "DECAY")
        constants = self.constants(Blocks(1, 1, 4, 1))
        return {**{name: constants[name] for name in names}, "PERIOD": period(self.f), "KEPT": self.kept}

    def decay_gradient(
        self, across: Tensor, down: Tensor | None, past: States | None, future: States | None, end: bool
    ) -> Tensor:
        """The gradient of the decays, (P, T, H) in float32."""
        dg = self.float32(self.batch, self.time, self.heads)
        constants = self.of_states()
        del constants["DECAY"]
        between.decay_gradient_kernel[(self.batch * self.heads * self.chunks,)](
            across, across if down is None else down, *(past or (dg, dg)), *(future or (dg, dg)), dg, *self.sizes[:3],
            FT=min(32, padded(self.kept)), BLOCK=triton.next_power_of_2(self.chunk), BOTH=down is not None,
            FUTURE=future is not None, END=end, **constants,
        )  # fmt: skip
        return dg if self.rows == self.batch else dg.unflatten(0, (self.rows, -1)).sum(1)


def _state(kv: Tensor | None, z: Tensor | None) -> States | None:
    """A state as the kernels read it; z may be missing beside kv in the backward pass, where it is 0."""
    if kv is None:
        return None
    assert z is not None
    return States(kv.to(torch.float32).contiguous(), z.to(torch.float32).contiguous())


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    kv: Tensor | None,
    z: Tensor | None,
    options: Options,
    keep: bool,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor, States | None, States | None]:
    """The forward kernels, with `blocks` of the output's from the table or given: o, and one over its sums of weights;
    the state after the last token, if `keep`; and the states between chunks, if there are any. See `triton.forward`."""
    p = Problem(q, k, v, log_decay, options)
    o, share = v.new_empty(v.shape), p.tokens(options.normalise)
    start, past, end = _state(kv, z), None, None
    if p.chunks > 1 or start is not None or keep:
        past, end = p.run_states(p.k, p.v, start, keep)
    reads = p.chunks > 1 or start is not None
    b = blocks or output_blocks(p.chunk, p.f, p.dv, q.dtype, p.decayed)
    inside.output_kernel[p.grid(b.rows)](
        p.q, p.k, p.v, p.near, p.rest, *(past or (o, o)), p.second, o, share, *p.numbers,
        COLS=b.cols, PAST=reads, START=start is not None, **p.of_features(), **p.constants(b),
    )  # fmt: skip
    return o, share, end if keep else None, past


def launch_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    kv: Tensor | None,
    z: Tensor | None,
    o: Tensor,
    share: Tensor,
    past: States | None,
    dkv: Tensor | None,
    dz: Tensor | None,
    options: Options,
    blocks: tuple[Blocks | None, Blocks, Blocks] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, States | None]:
    """The gradient kernels, with blocks (of the whole, dq's, dk's) from the table or given. `past` are the states that
    the forward pass made, which are made again where they are None. See `triton.backward`."""
    p = Problem(q, k, v, log_decay, options)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    size = (p.chunk, p.f, p.dv, q.dtype)
    whole, for_q, for_k = blocks or (whole_blocks(*size), gradient_blocks(*size), gradient_blocks(*size))
    do, across, down, future, first = do.contiguous(), p.tokens(p.decayed), None, None, None
    start, end = _state(kv, z), _state(dkv, dz)
    if whole is not None and p.chunks == 1 and start is None and end is None:
        inside.gradient_kernel[p.grid(whole.rows)](
            p.q, p.k, p.v, p.near, p.rest, do, dq, dk, dv, across, *p.numbers, **p.constants(whole)
        )
    else:
        reads, gives = p.chunks > 1 or start is not None, p.chunks > 1 or end is not None
        if past is None and (reads or gives):
            past, _ = p.run_states(p.k, p.v, start, keep=p.decayed and end is not None)
        delta, down = p.tokens(options.normalise), p.tokens(p.decayed)
        inside.query_gradient_kernel[p.grid(for_q.rows)](
            p.q, p.k, p.v, p.near, p.rest, *(past or (o, o)), p.second, o, share, do, dq, delta, across, *p.numbers,
            COLS=for_q.cols, PAST=reads, START=start is not None, **p.of_features(), **p.constants(for_q),
        )  # fmt: skip
        if reads or gives:
            future, first = p.run_states(p.q, do, end, start is not None, share, delta, reverse=True)
        inside.key_gradient_kernel[p.grid(for_k.rows)](
            p.q, p.k, p.v, p.near, p.rest, *(future or (o, o)), p.second, share, do, dk, dv, delta, down, *p.numbers,
            COLS=for_k.cols, FUTURE=gives, END=end is not None, **p.of_features(), **p.constants(for_k),
        )  # fmt: skip
    dg = p.decay_gradient(across, down, past, future, end is not None) if p.decayed else None
    return dq, dk, dv, dg, None if start is None else first
