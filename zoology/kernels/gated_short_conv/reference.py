"""The gated short convolution in PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoology.kernels.linear import linear
from zoology.kernels.short_conv import reference as short_conv


def gated_short_conv(x: Tensor, gate_weight: Tensor, gate_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same function as `zoology.kernels.gated_short_conv`."""
    convolved, _ = short_conv.short_conv(x, weight, bias)
    gate = (linear if x.is_cuda else F.linear)(x, gate_weight, gate_bias)
    return torch.addcmul(x, convolved, gate)


def check(x: Tensor, gate_weight: Tensor, gate_bias: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Refuse shapes that do not fit each other.

    Raises:
        ValueError: naming them.
    """
    short_conv.check(x, weight, bias, None, dims=3)
    d = x.shape[-1]
    if gate_weight.shape != (d, d) or gate_bias.shape != (d,):
        raise ValueError(
            f"gate_weight, gate_bias have the shapes {tuple(gate_weight.shape)}, {tuple(gate_bias.shape)}: "
            f"must be {(d, d)}, {(d,)}"
        )
