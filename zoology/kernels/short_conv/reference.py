"""Causal depthwise convolution in PyTorch.

    y_t = bias + sum_{j < k} weight[:, k - 1 - j] * x_{t - j}

The last column of `weight` is the current token's, as in a `Conv1d`. Before the beginning x is 0.
Source: the short convolution of H3 and BaseConv, arXiv:2212.14052, arXiv:2312.04927.

Letters: B batch, T time, D channels, k taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A piece of a sequence.

    Args:
        x: (B, T, D).
        weight: (D, k).
        bias: (D,), or None.
        state: the k - 1 inputs before the piece, (B, k - 1, D), or None at the beginning.

    Returns:
        y (B, T, D), and the state after the piece.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(x, weight, state, dims=3)
    kept = weight.shape[1] - 1
    seen = F.pad(x, (0, 0, kept, 0)) if state is None else torch.cat((state, x), dim=1)
    after = seen[:, seen.shape[1] - kept :].clone()  # a view would keep the whole piece alive
    if x.shape[1] == 0:
        return x, after
    if x.is_cuda:  # products of shifted inputs, which a compiler makes one pass of, with what stands around them
        return _shifted_products(x, seen, weight, bias, state is None), after
    # As an image of height 1 the layout (B, T, D) is what a 2-d convolution calls channels last, and nothing is copied:
    # half the time of a 1-d convolution on a CPU.
    image = seen.transpose(1, 2).unsqueeze(2)
    taps, bias = weight.to(x.dtype).unsqueeze(1).unsqueeze(1), None if bias is None else bias.to(x.dtype)
    y = F.conv2d(image, taps, bias, groups=weight.shape[0])
    return y.squeeze(2).transpose(1, 2), after


def _shifted_products(x: Tensor, seen: Tensor, weight: Tensor, bias: Tensor | None, fresh: bool) -> Tensor:
    """The same sum, tap by tap. From the beginning, each shift is padded alone, which a compiler need not write out."""
    time, kept = x.shape[1], weight.shape[1] - 1
    y = weight[:, kept] * x
    for j in range(1, kept + 1):
        shift = min(j, time)
        past = F.pad(x[:, : time - shift], (0, 0, shift, 0)) if fresh else seen[:, kept - j : kept - j + time]
        y = y + weight[:, kept - j] * past
    return (y if bias is None else y + bias).to(x.dtype)


def short_conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token of `short_conv`: x (B, D), state (B, k - 1, D) -> y (B, D), state.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(x, weight, state, dims=2)
    seen = torch.cat((state, x.unsqueeze(1)), dim=1)
    y = (seen * weight.t()).sum(1)
    return (y if bias is None else y + bias).to(x.dtype), seen[:, 1:].clone()


def _check(x: Tensor, weight: Tensor, state: Tensor | None, dims: int) -> None:
    if x.dim() != dims or weight.dim() != 2 or x.shape[-1] != weight.shape[0] or weight.shape[1] < 1:
        layout = "(B, T, D)" if dims == 3 else "(B, D)"
        raise ValueError(
            f"x, weight have the shapes {tuple(x.shape)}, {tuple(weight.shape)}: must be {layout}, (D, k), k >= 1"
        )
    if state is not None and state.shape != (x.shape[0], weight.shape[1] - 1, x.shape[-1]):
        raise ValueError(
            f"state has the shape {tuple(state.shape)}: must be {(x.shape[0], weight.shape[1] - 1, x.shape[-1])}"
        )
