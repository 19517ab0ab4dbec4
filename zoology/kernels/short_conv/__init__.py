"""Causal depthwise convolution over a few tokens.

    y_t = bias + sum_{j < k} weight[:, k - 1 - j] * x_{t - j}

The last column of `weight` is the current token's, as in a `Conv1d`. Before the beginning x is 0.

Source: the short convolution of H3 and BaseConv, arXiv:2212.14052, arXiv:2312.04927.

Letters: B batch, T time, D channels, k taps.
"""

import torch
from torch import Tensor

from zoology.kernels.replicas import choose
from zoology.kernels.short_conv import reference

__all__ = ["choose_for", "short_conv", "short_conv_step"]


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """A piece of a sequence. `torch.vmap` over models, each with its own taps, is one kernel for all.

    Args:
        x: (B, T, D).
        weight: (D, k).
        bias: (D,), or None.
        state: the k - 1 inputs before the piece, (B, k - 1, D), or None at the beginning.
        implementation: "triton", for up to 8 taps; "reference"; or None: on a GPU Triton, but the reference for more
            taps, for float64, and for up to 3 taps in what is compiled without gradients, where the compiler makes one
            pass of it with what stands around it.

    Returns:
        y (B, T, D) in the dtype of x, and the state after the piece. In Triton sums are taken in float32, and gradients
        once, not twice, and from outside of `torch.vmap`, not inside.

    Raises:
        ValueError: shapes that do not fit each other, or that the kernel cannot take.
    """
    reference.check(x, weight, bias, state, dims=3)
    if x.shape[1] == 0 or choose_for(implementation, x, weight, fused_taps=3) == "reference":
        return reference.short_conv(x, weight, bias, state)
    from zoology.kernels.short_conv import triton

    triton.limits(x, weight, state)
    y = triton.forward(*(None if a is None else a.unsqueeze(0) for a in (x, weight, bias, state)))
    return y.squeeze(0), reference.state_after(x, weight.shape[1] - 1, state)


def short_conv_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, *, implementation: str | None = None
) -> tuple[Tensor, Tensor]:
    """One token of `short_conv`: x (B, D), state (B, k - 1, D) -> y (B, D), state.

    Without an `implementation`, what is compiled without gradients gets the reference whatever the taps.

    Raises:
        ValueError: as `short_conv`.
    """
    reference.check(x, weight, bias, state, dims=2)
    if choose_for(implementation, x, weight, fused_taps=8) == "reference":
        return reference.short_conv_step(x, weight, bias, state)
    from zoology.kernels.short_conv import triton

    triton.limits(x, weight, state)
    y, after = triton.step(*(None if a is None else a.unsqueeze(0) for a in (x, weight, bias, state)))
    return y.squeeze(0), after.squeeze(0)


def choose_for(implementation: str | None, x: Tensor, weight: Tensor, fused_taps: int) -> str:
    """Which one runs. Up to so many taps, PyTorch compiled without gradients is faster, on an H100."""
    chosen = choose(implementation, x.device)
    if implementation is None and chosen == "triton":
        from zoology.kernels.short_conv import triton

        fused = torch.compiler.is_compiling() and not torch.is_grad_enabled() and weight.shape[1] <= fused_taps
        if fused or not triton.takes(x, weight):
            return "reference"
    return chosen
