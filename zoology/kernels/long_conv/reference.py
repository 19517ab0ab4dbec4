"""A causal depthwise convolution with a kernel as long as the sequence, in PyTorch, by FFT.

    y_t = sum_{j < L} kernel[:, j] * x_{t - j}

The first column of `kernel` is the current token's. Before the beginning x is 0. T log T operations for T tokens.
Sources: S4, arXiv:2111.00396; H3, arXiv:2212.14052 (the convolution by FFT); Hyena, arXiv:2302.10866.

Letters: T time, D channels, L taps of the kernel, S past inputs that are kept.
"""

import torch
from torch import Tensor


def long_conv(x: Tensor, kernel: Tensor, state: Tensor | None = None) -> Tensor:
    """A piece of a sequence.

    The product of the transforms is a circular convolution; the zeros that both are padded with are enough that
    nothing comes round. A later input reaches an earlier output through round-off alone, some 1e-7 of its size in
    float32. On a CPU this is as fast as the product with a Toeplitz matrix at 64 tokens, and faster beyond.

    Args:
        x: (..., T, D).
        kernel: (D, L). Taps beyond the beginning of the sequence meet zeros.
        state: the last inputs before the piece, (..., S, D), any number of them; None for none.

    Returns:
        y (..., T, D) in the dtype of x, computed in float32 or better.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(x, kernel, state)
    time = x.shape[-2]
    if time == 0:
        return x
    seen = x if state is None else torch.cat((state, x), dim=-2)
    length = seen.shape[-2]
    taps = min(kernel.shape[1], length)
    size = 1 << (length + taps - 2).bit_length()  # a power of 2, no less than length + taps - 1
    wide = torch.promote_types(x.dtype, torch.float32)
    spectrum = torch.fft.rfft(seen.to(wide).mT, n=size) * torch.fft.rfft(kernel[:, :taps].to(wide), n=size)
    return torch.fft.irfft(spectrum, n=size)[..., length - time : length].mT.to(x.dtype)


def long_conv_step(x: Tensor, kernel: Tensor, state: Tensor) -> Tensor:
    """One token of `long_conv`: x (..., D), state (..., S, D) -> y (..., D).

    Raises:
        ValueError: as `long_conv`.
    """
    _check(x.unsqueeze(-2), kernel, state)
    wide = torch.promote_types(x.dtype, torch.float32)
    seen = torch.cat((state, x.unsqueeze(-2)), dim=-2)[..., -kernel.shape[1] :, :].to(wide)
    weights = kernel[:, : seen.shape[-2]].flip(-1).to(wide)
    return (seen * weights.mT).sum(-2).to(x.dtype)


def _check(x: Tensor, kernel: Tensor, state: Tensor | None) -> None:
    if x.dim() < 2 or kernel.dim() != 2 or x.shape[-1] != kernel.shape[0] or kernel.shape[1] < 1:
        raise ValueError(
            f"x, kernel have the shapes {tuple(x.shape)}, {tuple(kernel.shape)}: must be (..., T, D), (D, L), L >= 1"
        )
    if state is not None and (state.shape[:-2] != x.shape[:-2] or state.shape[-1] != x.shape[-1]):
        raise ValueError(
            f"state has the shape {tuple(state.shape)}: must be {(*x.shape[:-2], 'S', x.shape[-1])}".replace("'", "")
        )
