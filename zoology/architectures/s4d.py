"""S4D: a fixed linear recurrence for each channel, with a complex diagonal state matrix."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.kernels.diagonal_ssm import diagonal_ssm, diagonal_ssm_step
from zoology.registry import InputError

DT_MIN, DT_MAX = 1e-3, 0.1
"""The step sizes at the start are log-uniform between these."""


class S4DState(NamedTuple):
    """D N real numbers for each sequence: ssm (batch, D, N / 2, 2), real and imaginary parts, in float32 or better."""

    ssm: Tensor


@register_mixer("s4d")
class S4D(Mixer):
    """S4D, the diagonal structured state-space model, as state-spaces/s4's minimal `S4D` has it.

        h = exp(dt A) h + u,  A = -exp(log_A_real) + i A_imag
        y = 2 Re(C (exp(dt A) - 1) / A . h) + D * u
        GLU(W GELU(y) + b), the two halves of W together being `output_linear.0`

    Neither A nor C depends on the token: the layer is a convolution, whose kernel no input can change, and recalls
    little on its own. Weights of the public code load as they are; it sees to the rest of its block (dropout, a norm
    after the residual) elsewhere.

    Source: S4D, arXiv:2206.11893 (the zero-order hold, and the starts S4D-Lin, S4D-Inv, S4D-LegS)

    Letters: u the layer's input, D (the width) d_model, N d_state, of which conjugate pairs keep one half; dt the step
    size, D (the parameter) the skip.

    Raises:
        InputError: d_state is odd.
    """

    class Config(MixerConfig):
        d_state: int = dial(16, sweep=(8, 16, 32), ge=2, help="numbers kept for each channel; even")
        measure: Literal["lin", "inv", "legs"] = Field("lin", description="how A starts: S4D-Lin, -Inv or -LegS")
        kernel_lr: float = Field(
            1e-3, gt=0, description="learning rate of the step sizes and of A, before the schedule"
        )

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        self.D = nn.Parameter(torch.randn(d_model))
        self.kernel = DiagonalKernel(d_model, config.d_state, config.measure, config.kernel_lr)
        self.output_linear = nn.Sequential(nn.Conv1d(d_model, 2 * d_model, 1), nn.GLU(dim=-1))

    def init_state(self, batch_size: int) -> S4DState:
        wide = torch.promote_types(self.D.dtype, torch.float32)
        return S4DState(self.zeros(batch_size, *self.kernel.C.shape, dtype=wide))

    def forward(self, x: Tensor) -> Tensor:
        y, _ = diagonal_ssm(x, *self.kernel())
        return self._output(y, x)

    def prefill(self, x: Tensor, state: S4DState) -> tuple[Tensor, S4DState]:
        y, after = diagonal_ssm(x, *self.kernel(), state=state.ssm, output_state=True)
        assert after is not None
        return self._output(y, x), S4DState(after)

    def step(self, x: Tensor, state: S4DState) -> tuple[Tensor, S4DState]:
        y, after = diagonal_ssm_step(x, *self.kernel(), state.ssm)
        return self._output(y, x), S4DState(after)

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        conv = self.output_linear[0]
        y = F.gelu(torch.addcmul(y, x, self.D))
        return F.glu(F.linear(y, conv.weight.squeeze(-1), conv.bias), dim=-1)  # type: ignore[operator, arg-type]


class DiagonalKernel(nn.Module):
    """S4D's parameters, under the names of state-spaces/s4's `S4DKernel`.

    log_dt (D,); C (D, N / 2, 2); log_A_real, A_imag (D, N / 2). None but C decays; log_dt and A have their own learning
    rate, as published.

    Raises:
        InputError: d_state is odd.
    """

    def __init__(self, d_model: int, d_state: int, measure: str, lr: float):
        super().__init__()
        self.C = nn.Parameter(torch.randn(d_model, d_state // 2, 2) * 0.5**0.5)
        self.log_dt = nn.Parameter(torch.empty(d_model).uniform_(math.log(DT_MIN), math.log(DT_MAX)))
        self.log_A_real = nn.Parameter(torch.full((d_model, d_state // 2), math.log(0.5)))
        self.A_imag = nn.Parameter(imaginary_parts(d_state, measure).repeat(d_model, 1))
        for parameter in (self.log_dt, self.log_A_real, self.A_imag):
            parameter._optim = {"lr": lr, "weight_decay": 0.0}  # type: ignore[attr-defined]

    def forward(self) -> tuple[Tensor, Tensor]:
        """dt A and C (exp(dt A) - 1) / A, both (D, N / 2), complex."""
        wide = torch.promote_types(self.C.dtype, torch.float32)
        log_dt, A_real, A_imag, C = (p.to(wide) for p in (self.log_dt, self.log_A_real, self.A_imag, self.C))
        A = torch.complex(-A_real.exp(), A_imag)
        dtA = A * log_dt.exp().unsqueeze(-1)
        return dtA, torch.complex(C[..., 0], C[..., 1]) * (dtA.exp() - 1) / A


def imaginary_parts(d_state: int, measure: str) -> Tensor:
    """Where the imaginary parts of A start, one of each conjugate pair: (N / 2,), in float32.

    "lin": pi n. "inv": N / pi (N / (2 n + 1) - 1). "legs": those of the normal part of the HiPPO-LegS matrix, whose
    real parts are all -1/2, in ascending order.

    Raises:
        InputError: d_state is odd.
    """
    if d_state % 2:
        raise InputError(f"d_state = {d_state}: must be even, as the state has complex conjugate pairs")
    n = torch.arange(d_state // 2, dtype=torch.float64)
    if measure == "lin":
        imag = math.pi * n
    elif measure == "inv":
        imag = d_state / math.pi * (d_state / (2 * n + 1) - 1)
    else:
        root = (2 * torch.arange(d_state, dtype=torch.float64) + 1).sqrt()
        skew = -0.5 * (torch.outer(root, root).tril(-1) - torch.outer(root, root).triu(1))
        imag = torch.linalg.eigvalsh(-1j * skew)[d_state // 2 :]
    return imag.float()
