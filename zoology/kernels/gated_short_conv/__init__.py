"""A causal convolution over a few tokens, gated by the current one, beside the input: the whole layer in one op.

    y_t = x_t + (W x_t + c) (bias + sum_{j < k} weight[:, k - 1 - j] * x_{t - j})

Source: the gated convolution of the Zoology paper's models, arXiv:2312.04927.

Letters: B batch, T time, D channels, k taps; W and c are gate_weight and gate_bias.
"""

from torch import Tensor

from zoology.kernels.gated_short_conv import reference
from zoology.kernels.short_conv import choose_for

__all__ = ["gated_short_conv"]


def gated_short_conv(
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    implementation: str | None = None,
) -> Tensor:
    """A sequence from its beginning. `torch.vmap` over models, each with its own weights, is one kernel for all.

    Args:
        x: (B, T, D).
        gate_weight: (D, D).
        gate_bias: (D,).
        weight: (D, k).
        bias: (D,).
        implementation: "triton", "reference", or None: on a GPU what `short_conv` would choose.

    Returns:
        (B, T, D) in the dtype of x. In Triton all but the product with W, which rounds under autocast, is computed in
        float32; gradients are taken once, not twice, and from outside of `torch.vmap`, not inside.

    Raises:
        ValueError: shapes that do not fit each other, or that the kernel cannot take.
    """
    reference.check(x, gate_weight, gate_bias, weight, bias)
    if x.shape[1] == 0 or choose_for(implementation, x, weight, fused_taps=3) == "reference":
        return reference.gated_short_conv(x, gate_weight, gate_bias, weight, bias)
    from zoology.kernels.gated_short_conv import triton

    return triton.gated_short_conv(x, gate_weight, gate_bias, weight, bias)
