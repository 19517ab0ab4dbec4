"""A state-space model with a complex diagonal state matrix, in PyTorch: a convolution over a piece, a step for a token.

    h_t = a * h_{t-1} + x_t,    y_t = 2 Re(c . h_t) = sum_j K_j x_{t-j},    K_j = 2 Re(sum_m c_m a_m^j)

The state has conjugate pairs, of which one half is kept: hence 2 Re. The input map is in c.
Source: S4D, arXiv:2206.11893, section 3.

Letters: T time, H channels, M = N / 2 complex numbers kept for each channel.
"""

import torch
from torch import Tensor

from zoology.kernels.long_conv import long_conv


def diagonal_ssm(
    x: Tensor, log_a: Tensor, c: Tensor, *, state: Tensor | None = None, output_state: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A piece of a sequence.

    Args:
        x: (..., T, H).
        log_a: (H, M) complex, the logarithm of a. Its real part is at most 0, so that no power of a overflows.
        c: (H, M) complex.
        state: h before the piece, (..., H, M, 2), real and imaginary parts; None at the beginning.
        output_state: whether h after the piece is returned; None otherwise.

    Returns:
        y (..., T, H) in the dtype of x, and h (..., H, M, 2) or None. Both are computed in float32 or better.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(x, log_a, c, state)
    time = x.shape[-2]
    powers = _powers(log_a, time)
    kernel = 2 * (c.unsqueeze(-2) @ powers).squeeze(-2).real if time else x.new_zeros(x.shape[-1], 1)
    y = long_conv(x, kernel)
    h = None if state is None else torch.view_as_complex(state).unsqueeze(-2)  # (..., H, 1, M)
    if h is not None:
        past = 2 * ((h * (c * log_a.exp()).unsqueeze(-2)) @ powers).squeeze(-2).real
        y = y + past.mT.to(y.dtype)
    if not output_state:
        return y, None
    inputs = x.mT.unsqueeze(-2).to(powers.dtype)  # (..., H, 1, T)
    after = inputs @ powers.flip(-1).mT
    if h is not None:
        after = after + h * (log_a * time).exp().unsqueeze(-2)
    return y, torch.view_as_real(after.squeeze(-2)).contiguous()


def diagonal_ssm_step(x: Tensor, log_a: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token of `diagonal_ssm`: x (..., H), state (..., H, M, 2) -> y (..., H), state.

    Raises:
        ValueError: as `diagonal_ssm`.
    """
    _check(x.unsqueeze(-2), log_a, c, state)
    h = torch.view_as_complex(state) * log_a.exp() + x.unsqueeze(-1)
    y = 2 * (h * c).sum(-1).real
    return y.to(x.dtype), torch.view_as_real(h)


def _powers(log_a: Tensor, time: int) -> Tensor:
    """1, a, a^2, ...: (H, M) -> (H, M, T)."""
    return torch.exp(log_a.unsqueeze(-1) * torch.arange(time, device=log_a.device))


def _check(x: Tensor, log_a: Tensor, c: Tensor, state: Tensor | None) -> None:
    if x.dim() < 2 or log_a.dim() != 2 or log_a.shape != c.shape or x.shape[-1] != log_a.shape[0]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, log_a, c))
        raise ValueError(f"x, log_a, c have the shapes {shapes}: must be (..., T, H), (H, M), (H, M)")
    if state is not None and state.shape != (*x.shape[:-2], *log_a.shape, 2):
        raise ValueError(f"state has the shape {tuple(state.shape)}: must be {(*x.shape[:-2], *log_a.shape, 2)}")
