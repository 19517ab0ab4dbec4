"""A causal depthwise convolution with a kernel as long as the sequence, in PyTorch, by FFT.

    y_t = sum_{j < L} kernel[:, j] * x_{t - j}

The first column of `kernel` is the current token's. Before the beginning x is 0. T log^2 T operations for T tokens.
Sources: S4, arXiv:2111.00396; H3, arXiv:2212.14052 (the convolution by FFT); Hyena, arXiv:2302.10866.

Letters: T time, D channels, L taps of the kernel, S past inputs that are kept, G sequences.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def long_conv(x: Tensor, kernel: Tensor, state: Tensor | None = None, *, block_size: int = 64) -> Tensor:
    """A piece of a sequence.

    One transform of everything would let a later input reach earlier outputs through round-off: small beside the
    loudest token of the sequence, but not beside a quiet one. So nothing of the future enters: inside blocks of
    `block_size` tokens the kernel is a triangular matrix; and for every pair of neighbouring blocks of that size, twice
    that size, and so on, the first half reaches the second by an FFT of the first alone. On a CPU this takes as long as
    one transform at 64 tokens, and two to three times as long at 1024.

    Args:
        x: (..., T, D).
        kernel: (D, L). Taps beyond the beginning of the sequence meet zeros.
        state: the last inputs before the piece, (..., S, D), any number of them; None for none.
        block_size: tokens in the smallest blocks. Changes no number beyond rounding.

    Returns:
        y (..., T, D) in the dtype of x, computed in float32 or better.

    Raises:
        ValueError: shapes that do not fit each other, or a block size below 1.
    """
    _check(x, kernel, state)
    if block_size < 1:
        raise ValueError(f"block_size = {block_size}: must be at least 1")
    time = x.shape[-2]
    if time == 0:
        return x
    seen = x if state is None else torch.cat((state, x), dim=-2)
    length = seen.shape[-2]
    wide = torch.promote_types(x.dtype, torch.float32)
    u = seen.to(wide).flatten(0, -3).permute(2, 0, 1) if seen.dim() > 2 else seen.to(wide).mT.unsqueeze(1)
    k = kernel[:, :length].to(wide)
    size = min(block_size, length)
    y = _inside_blocks(u, k, size)
    while size < length:
        y = y + _across_blocks(u, k, size)
        size *= 2
    return y[..., length - time :].permute(1, 2, 0).reshape(x.shape).to(x.dtype)


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


def long_conv_inputs(x: Tensor, taps: int, state: Tensor | None = None) -> Tensor:
    """What a convolution of `taps` taps must keep after a piece: its last taps - 1 inputs, or all where they are fewer.

    x (..., T, D), state (..., S, D) or None -> (..., min(S + T, taps - 1), D).
    """
    seen = x if state is None else torch.cat((state, x), dim=-2)
    return seen[..., max(0, seen.shape[-2] - taps + 1) :, :].clone()  # a view would keep the whole piece alive


def _inside_blocks(u: Tensor, kernel: Tensor, size: int) -> Tensor:
    """What each input gives to the outputs of its own block: u (D, G, T), kernel (D, L) -> (D, G, T)."""
    length = u.shape[-1]
    taps = F.pad(kernel[:, :size], (0, max(0, size - kernel.shape[1])))
    # Column t of a block's matrix has kernel[t - s] in row s: windows over the kernel reversed, with zeros after it.
    windows = F.pad(taps.flip(-1), (0, size - 1)).unfold(-1, size, 1)
    blocks = F.pad(u, (0, -length % size)).unflatten(-1, (-1, size)).flatten(1, 2)
    return (blocks @ windows.flip(1).mT).unflatten(1, (u.shape[1], -1)).flatten(2)[..., :length]


def _across_blocks(u: Tensor, kernel: Tensor, size: int) -> Tensor:
    """What the first block of each pair of blocks gives to the second: u (D, G, T), kernel (D, L) -> (D, G, T).

    In a transform of 2 size points over `size` inputs, nothing that comes round falls on the second half.
    """
    length = u.shape[-1]
    pairs = -(-(length - size) // (2 * size))  # those whose second block has a token
    whole = 2 * size * pairs
    first = F.pad(u, (0, max(0, whole - length)))[..., :whole].unflatten(-1, (pairs, 2 * size))[..., :size]
    spectrum = torch.fft.rfft(kernel[:, : 2 * size], n=2 * size).unsqueeze(1).unsqueeze(1)
    second = torch.fft.irfft(torch.fft.rfft(first, n=2 * size) * spectrum, n=2 * size)[..., size:]
    return F.pad(F.pad(second, (size, 0)).flatten(-2), (0, length - whole))


def _check(x: Tensor, kernel: Tensor, state: Tensor | None) -> None:
    if x.dim() < 2 or kernel.dim() != 2 or x.shape[-1] != kernel.shape[0] or kernel.shape[1] < 1:
        raise ValueError(
            f"x, kernel have the shapes {tuple(x.shape)}, {tuple(kernel.shape)}: must be (..., T, D), (D, L), L >= 1"
        )
    if state is not None and (state.shape[:-2] != x.shape[:-2] or state.shape[-1] != x.shape[-1]):
        raise ValueError(
            f"state has the shape {tuple(state.shape)}: must be {(*x.shape[:-2], 'S', x.shape[-1])}".replace("'", "")
        )
