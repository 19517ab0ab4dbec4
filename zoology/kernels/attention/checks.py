"""What the Triton kernels of softmax attention can take, and whether the compiler has made them right.

Hazard: rounded weights are a product's left operand from registers, which the ptxas of CUDA 12 can miscompile on
Hopper. `zoology.kernels.hopper` checks at first use.

Letters: B batch, T queries, S keys, H heads, d head width, w window.
"""

import torch
from torch import Tensor

from zoology.kernels import hopper
from zoology.kernels.attention import reference
from zoology.kernels.attention.launch import kept_weights, launch_backward, launch_forward

MAX_WIDTH, MAX_KEYS = 128, 2**15
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def limits(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse what the kernels cannot take.

    Raises:
        ValueError: naming the limit.
    """
    if not 1 <= q.shape[-1] <= MAX_WIDTH:
        raise ValueError(f"d = {q.shape[-1]}: the Triton kernel takes 1 to {MAX_WIDTH}")
    if k.shape[1] >= MAX_KEYS:
        raise ValueError(f"S = {k.shape[1]}: the Triton kernel takes less than {MAX_KEYS} keys")
    if any(x.dtype != q.dtype or x.dtype not in DTYPES for x in (q, k, v)):
        raise ValueError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: "
            "the Triton kernel takes float32, bfloat16 and float16, all alike"
        )
    if q.shape[0] * q.shape[2] * (q.shape[1] // 16 + 1) >= 2**31:
        raise ValueError(f"B H T / 16 = {q.shape[0] * q.shape[2] * (q.shape[1] // 16 + 1)}: must be less than 2^31")


def _errors(shape: tuple[int, int, int, int], window: int, dropout: float, like: Tensor) -> dict[str, float]:
    """Relative errors of output and gradients on a small instance, against float64.

    Queries are near the keys of some tokens, or gradients of q and k would be differences of rounding.
    """
    batch, time, keys, d = shape
    rng = torch.Generator(like.device).manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        draws = (torch.randn(batch, n, 2, d, generator=rng, device=like.device) for n in (time, keys, keys, time))
        q, k, v, grad = (x.mul(1.5).to(like.dtype) for x in draws)
        seed = torch.zeros(1, dtype=torch.int64, device=like.device) if dropout else None
        o, log_sum = launch_forward(q, k, v, seed, window, dropout)
        got = (o, *launch_backward(grad, q, k, v, seed, o, log_sum, window, dropout))
        exact = [x.double().requires_grad_() for x in (q, k, v)]
        want = exactly(*exact, seed, window, dropout)
        wants = (want.detach(), *torch.autograd.grad(want, exact, grad.double()))
    names = ("the output", "the gradient of q", "the gradient of k", "the gradient of v")
    return {n: float((a.double() - b).norm() / b.norm()) for n, a, b in zip(names, got, wants, strict=True)}


def exactly(q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, window: int, dropout: float) -> Tensor:
    """What the forward kernel computes, with its dropout, in PyTorch and the dtype of its inputs."""
    (batch, time, heads, d), keys = q.shape, k.shape[1]
    unseen = reference.hidden(time, keys, window, q.device)
    weights = (torch.einsum("bthd,bshd->bhts", q, k) * d**-0.5).masked_fill(unseen, -torch.inf).softmax(-1)
    if seed is not None:
        weights = weights * kept_weights(seed, batch, heads, time, keys, dropout) / (1 - dropout)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def check(q: Tensor, k: Tensor, seed: Tensor | None, dropout: float) -> None:
    if q.dtype == torch.float32:  # it does not go through the matrix units
        return
    (_, time, _, d), keys = q.shape, k.shape[1]
    # Blocks depend on these. Of a few tokens gradients are all but 0; where a sequence is long, some blocks and a piece
    # of one are enough.
    whole, keys, d = time == keys, min(max(keys, 16), 300), max(d, 8)
    time = keys if whole else min(max(time, 8), keys)
    key = ("attention", time, keys, d, q.dtype, seed is not None)
    hopper.check(key, q.device, lambda: _errors((2, time, keys, d), keys - 3, dropout, q))
