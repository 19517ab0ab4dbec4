"""How the Triton kernels of softmax attention over short sequences are launched.

Block sizes come from a table, not from timing: another block size rounds otherwise.

Letters: B batch, T queries, S keys, H heads, d head width, w window, P seeds, each for B / P rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from zoology.kernels.attention.programs import forward_kernel, kept_kernel, key_kernel, query_kernel, whole_kernel
from zoology.kernels.replicas import register_limit

LOG2E = 1.4426950408889634
LONG = 128
"""Keys from which on so many blocks are seen whole that it pays to ask which."""


class Blocks(NamedTuple):
    """What a kernel is compiled for: queries and keys in a block, warps in a program, blocks in flight, and registers
    of a thread at most."""

    queries: int
    keys: int
    warps: int
    stages: int = 3
    registers: int | None = None

    @property
    def words(self) -> dict[str, int]:
        """As a kernel's keywords."""
        blocks = {"QUERIES": self.queries, "KEYS": self.keys, "num_warps": self.warps, "num_stages": self.stages}
        return blocks | register_limit(self.registers)


def forward_blocks(width: int, time: int, dtype: torch.dtype) -> Blocks:
    """The forward kernel's blocks, for a head width that is a power of two: of eight, the fastest or near it on an
    H200 at T of 64 to 512 and d = 64. 128 registers leave room for four programs at a time, and nothing spills."""
    if dtype == torch.float32:
        return Blocks(32, 32, 4) if width <= 64 else Blocks(16, 16, 4)
    return Blocks(64, 64, 4, 3, 128) if time > 64 and width <= 64 else Blocks(64, 32, 4)


def backward_blocks(width: int, time: int, dtype: torch.dtype) -> tuple[Blocks, Blocks]:
    """The blocks of the backward kernels of longer sequences, of the queries and of the keys: of twenty, the fastest on
    an H200 at T of 128 to 512 and d = 64. What a program of the keys holds leaves room for few queries."""
    if dtype == torch.float32:
        return (Blocks(32, 32, 4) if width <= 64 else Blocks(16, 16, 4),) * 2
    if width <= 64 and time > 64:
        return Blocks(64, 32, 4, 3), Blocks(32, 64, 4, 2, 128)
    return (Blocks(32, 32, 2 if width <= 64 else 4),) * 2


def whole_block(width: int, queries: int, keys: int, dtype: torch.dtype) -> Blocks | None:
    """The block of the backward kernel that takes a sequence whole, or None where it is too long."""
    limit = 32 if dtype == torch.float32 else 64
    if queries != keys or keys > limit or width > (64 if dtype == torch.float32 else 128):
        return None
    return Blocks(padded(keys), padded(keys), 4)


def padded(n: int) -> int:
    """The width that a kernel computes with: products take no less than 16."""
    return max(16, triton.next_power_of_2(n))


def kept_weights(seed: Tensor, batch: int, heads: int, queries: int, keys: int, dropout: float) -> Tensor:
    """Which weights are not dropped, bool (B, H, T, S): what the other kernels never write down."""
    out = torch.empty(batch, heads, queries, keys, dtype=torch.int8, device=seed.device)
    kept_kernel[(batch * heads,)](
        seed, out, queries, keys, heads, _threshold(dropout), batch // seed.numel(), padded(queries), padded(keys)
    )
    return out.bool()


def _threshold(dropout: float) -> int:
    return round(dropout * 2**31)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 and 0 <= x.stride(1) < 2**24 else x.contiguous()


def _options(q: Tensor, k: Tensor, seed: Tensor | None, dropout: float) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of dropout, and what all kernels are compiled for."""
    each = 1 if seed is None else max(1, q.shape[0] // seed.numel())
    words = {"D": q.shape[-1], "DROPOUT": seed is not None, "WIDTH": padded(q.shape[-1])}
    return (_threshold(dropout), 1 / (1 - dropout), each), words


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, window: int, dropout: float, blocks: Blocks | None = None
) -> tuple[Tensor, Tensor]:
    """The forward kernel, with `blocks` from the table or given; see `forward`."""
    batch, time, heads, d = q.shape
    o, log_sum = q.new_empty(q.shape), q.new_empty(batch, heads, time, dtype=torch.float32)
    if o.numel():
        q, k, v = _dense(q), _dense(k), _dense(v)
        numbers, words = _options(q, k, seed, dropout)
        b = blocks or forward_blocks(words["WIDTH"], k.shape[1], q.dtype)
        forward_kernel[(batch * heads * triton.cdiv(time, b.queries),)](
            q, k, v, q if seed is None else seed, o, log_sum, time, k.shape[1], heads, window, d**-0.5 * LOG2E,
            *numbers, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            **b.words, **words, LONG=k.shape[1] > LONG,
        )  # fmt: skip
    return o, log_sum


def launch_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, o: Tensor, log_sum: Tensor, window: int,
    dropout: float, blocks: tuple[Blocks, Blocks] | None = None, whole: Blocks | None = None,
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The backward pass, with blocks from the tables, or given for the kernels of the queries and of the keys, or for
    the one of all; see `gradient`.

    `out` is where the gradients go: heads dense within a token, tokens as far apart in all three.
    """
    batch, time, heads, d = q.shape
    by_q, by_k, by_v = out or (x.new_empty(x.shape) for x in (q, k, v))
    if not q.numel():
        return by_q, by_k.zero_(), by_v.zero_()
    grad, q, k, v = _dense(grad), _dense(q), _dense(k), _dense(v)
    numbers, words = _options(q, k, seed, dropout)
    seeds, keys, width = q if seed is None else seed, k.shape[1], words["WIDTH"]
    scales = (window, d**-0.5 * LOG2E, d**-0.5)
    strides = (*(s for x in (q, k, v, grad) for s in x.stride()[:3]), by_q.stride(1))
    if blocks is None:
        whole = whole or whole_block(width, time, keys, q.dtype)
    if whole is not None:
        whole_kernel[(batch * heads,)](
            q, k, v, seeds, grad, by_q, by_k, by_v, time, heads, *scales, *numbers, *strides,
            ROWS=whole.queries, num_warps=whole.warps, **words,
        )  # fmt: skip
        return by_q, by_k, by_v
    of_query, of_key = blocks or backward_blocks(width, keys, q.dtype)
    words["LONG"] = keys > LONG
    delta = log_sum.new_empty(log_sum.shape)
    drawn = delta if seed is None else log_sum.new_empty(log_sum.shape, dtype=torch.int32)
    rest = (time, keys, heads, *scales, *numbers, *strides)
    query_kernel[(batch * heads * triton.cdiv(time, of_query.queries),)](
        q, k, v, seeds, o.contiguous(), grad, log_sum, by_q, delta, drawn, *rest, **words, **of_query.words
    )
    key_kernel[(batch * heads * triton.cdiv(keys, of_key.keys),)](
        q, k, v, drawn, grad, log_sum, delta, by_k, by_v, *rest, **words, **of_key.words
    )
    return by_q, by_k, by_v
