"""Causal depthwise convolution in PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same function as `zoology.kernels.short_conv`."""
    check(x, weight, bias, state, dims=3)
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


def state_after(x: Tensor, kept: int, state: Tensor | None) -> Tensor:
    """The last `kept` inputs, the piece's and those before it, copied: a view would keep the whole piece alive."""
    time = x.shape[1]
    last = x[:, max(time - kept, 0) :]
    if state is not None:
        return torch.cat((state[:, time:], last), dim=1)
    return last.clone() if time >= kept else F.pad(last, (0, 0, kept - time, 0))


def short_conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same function as `zoology.kernels.short_conv_step`."""
    check(x, weight, bias, state, dims=2)
    seen = torch.cat((state, x.unsqueeze(1)), dim=1)
    y = (seen * weight.t()).sum(1)
    return (y if bias is None else y + bias).to(x.dtype), seen[:, 1:].clone()


def check(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, dims: int) -> None:
    """Refuse shapes that do not fit each other, for x of so many axes.

    Raises:
        ValueError: naming them.
    """
    if x.dim() != dims or weight.dim() != 2 or x.shape[-1] != weight.shape[0] or weight.shape[1] < 1:
        layout = "(B, T, D)" if dims == 3 else "(B, D)"
        raise ValueError(
            f"x, weight have the shapes {tuple(x.shape)}, {tuple(weight.shape)}: must be {layout}, (D, k), k >= 1"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has the shape {tuple(bias.shape)}: must be {tuple(weight.shape[:1])}")
    if state is not None and state.shape != (x.shape[0], weight.shape[1] - 1, x.shape[-1]):
        raise ValueError(
            f"state has the shape {tuple(state.shape)}: must be {(x.shape[0], weight.shape[1] - 1, x.shape[-1])}"
        )
