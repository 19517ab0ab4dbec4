"""H3: a shift and a diagonal state-space model, with products between them in the manner of linear attention."""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from zoology.architectures.base import Mixer, register_mixer
from zoology.architectures.config import MixerConfig, dial
from zoology.architectures.s4d import DT_MAX, DT_MIN, imaginary_parts
from zoology.kernels.diagonal_ssm import diagonal_ssm, diagonal_ssm_step
from zoology.kernels.short_conv import short_conv, short_conv_step
from zoology.registry import InputError


class H3State(NamedTuple):
    """D (N - 1) + d D N real numbers for each sequence.

    shift: (batch, N - 1, D), the last keys. The shift model holds N of them, but the oldest leaves before it is read.
    ssm: (batch, d, d, H, N / 2, 2), real and imaginary parts of the diagonal model, in float32 or better.
    """

    shift: Tensor
    ssm: Tensor


@register_mixer("h3")
class H3(Mixer):
    """H3, Hungry Hungry Hippos, as HazyResearch/H3's `H3` has it.

        q, k, v = q_proj(u), k_proj(u), v_proj(u);  k = SSM_shift(k) + ssm_k_D * k
        s = k v^T in each head;  y = q (SSM_diag(s) + D s);  output_linear(y)

    The shift model, B and C being what is trained of it, is a convolution over N tokens: it puts a key beside the value
    that follows. The diagonal model runs over each of the d x d products of a head, discretised bilinearly. Weights of
    the public code load as they are.

    Source: H3, arXiv:2212.14052, section 3; the diagonal model: S4D, arXiv:2206.11893

    Letters: u the layer's input, D (the width) d_model, N d_state, of which conjugate pairs keep one half in the
    diagonal model; d head_dim, H = D / d heads.

    Raises:
        InputError: d_model is not divisible by head_dim, or d_state is odd.
    """

    class Config(MixerConfig):
        # 16 were measured to recall no more than 4 do, in four times the state: a sweep's axis is head_dim.
        d_state: int = dial(16, sweep=(4,), ge=2, help="numbers kept for each channel of a model; even")
        head_dim: int = dial(1, sweep=(2, 4, 8), help="width of a head: keys times values are head_dim x head_dim")
        measure: Literal["lin", "inv", "legs"] = Field("lin", description="how A starts: diag-lin, -inv or -legs")

    def __init__(self, d_model: int, config: Config):
        super().__init__()
        if d_model % config.head_dim:
            allowed = ", ".join(str(n) for n in range(1, d_model + 1) if d_model % n == 0)
            raise InputError(
                f"d_model = {d_model} is not divisible by head_dim = {config.head_dim}: head_dim must be one of "
                f"{allowed}"
            )
        self.head_dim, self.d_state = config.head_dim, config.d_state
        self.num_heads = d_model // config.head_dim
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.kernel = nn.ModuleDict({"kernel": _DiagonalKernel(self.num_heads, config.d_state, config.measure)})
        self.ssm_k_kernel = nn.ModuleDict({"kernel": _ShiftKernel(d_model, config.d_state)})
        self.ssm_k_D = nn.Parameter(torch.randn(d_model))
        self.D = nn.Parameter(torch.randn(self.num_heads))
        self.output_linear = nn.Linear(d_model, d_model)

    def init_state(self, batch_size: int) -> H3State:
        wide = torch.promote_types(self.D.dtype, torch.float32)
        shape = (batch_size, self.head_dim, self.head_dim, self.num_heads, self.d_state // 2, 2)
        return H3State(self.zeros(batch_size, self.d_state - 1, self.ssm_k_D.shape[0]), self.zeros(*shape, dtype=wide))

    def forward(self, x: Tensor) -> Tensor:
        k = self.k_proj(x)
        shifted, _ = short_conv(k, self.ssm_k_kernel["kernel"]())
        q, k, v = self._heads(x, k, shifted)
        y, _ = diagonal_ssm(k * v, *self.kernel["kernel"]())
        return self._output(q, k, v, y)

    def prefill(self, x: Tensor, state: H3State) -> tuple[Tensor, H3State]:
        k = self.k_proj(x)
        shifted, keys = short_conv(k, self.ssm_k_kernel["kernel"](), None, state.shift)
        q, k, v = self._heads(x, k, shifted)
        y, ssm = diagonal_ssm(k * v, *self.kernel["kernel"](), state=state.ssm, output_state=True)
        assert ssm is not None
        return self._output(q, k, v, y), H3State(keys, ssm)

    def step(self, x: Tensor, state: H3State) -> tuple[Tensor, H3State]:
        k = self.k_proj(x)
        shifted, keys = short_conv_step(k, self.ssm_k_kernel["kernel"](), None, state.shift)
        q, k, v = self._heads(x.unsqueeze(1), k.unsqueeze(1), shifted.unsqueeze(1))
        y, ssm = diagonal_ssm_step((k * v).squeeze(3), *self.kernel["kernel"](), state.ssm)
        return self._output(q, k, v, y.unsqueeze(3)).squeeze(1), H3State(keys, ssm)

    def _heads(self, x: Tensor, k: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys (batch, d, 1, time, H), and values (batch, 1, d, time, H)."""
        k = torch.addcmul(shifted, k, self.ssm_k_D)
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).permute(0, 3, 1, 2) for t in (self.q_proj(x), k, self.v_proj(x))
        )
        return q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(1)

    def _output(self, q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> Tensor:
        """q (y + D k v), y (batch, d, d, time, H); the second term as (q k) v, so that it is made for d, not d x d."""
        y = torch.addcmul((q * y).sum(1), (q * k).sum(1) * self.D, v.squeeze(1))  # (batch, d, time, H)
        return self.output_linear(y.transpose(1, 2).flatten(2))


class _ShiftKernel(nn.Module):
    """The shift model's B (D, N) and C (1, D, N): K_j = sum_n C_{n + j} B_n, and 0 from N on.

    B starts as (1, 0, ..., 0), so that K is C, which starts as the weights of an nn.Conv1d.
    """

    def __init__(self, channels: int, d_state: int):
        super().__init__()
        self.B = nn.Parameter(torch.zeros(channels, d_state))
        with torch.no_grad():
            self.B[:, 0] = 1.0
        self.C = nn.Parameter(torch.empty(1, channels, d_state).uniform_(-(d_state**-0.5), d_state**-0.5))
        self.B._optim = {"weight_decay": 0.0}  # type: ignore[attr-defined]

    def forward(self) -> Tensor:
        """The taps (D, N), the current token's last."""
        n = self.B.shape[-1]
        padded = nn.functional.pad(self.C.squeeze(0), (0, n - 1))
        return (padded.unfold(-1, n, 1) @ self.B.unsqueeze(-1)).squeeze(-1).flip(-1)


class _DiagonalKernel(nn.Module):
    """The diagonal model: C (1, H, N / 2, 2), B (H, N / 2, 2), log_dt (H,), inv_A_real and A_imag (H, N / 2).

    A = -exp(inv_A_real) + i A_imag. None but C decays, as published.
    """

    def __init__(self, heads: int, d_state: int, measure: str):
        super().__init__()
        imag = imaginary_parts(d_state, measure)
        self.C = nn.Parameter(torch.randn(1, heads, d_state // 2, 2) * 0.5**0.5)
        self.log_dt = nn.Parameter(torch.empty(heads).uniform_(math.log(DT_MIN), math.log(DT_MAX)))
        self.B = nn.Parameter(torch.tensor((1.0, 0.0)).repeat(heads, d_state // 2, 1))
        self.inv_A_real = nn.Parameter(torch.full((heads, d_state // 2), math.log(0.5)))
        self.A_imag = nn.Parameter(imag.repeat(heads, 1))
        for parameter in (self.log_dt, self.B, self.inv_A_real, self.A_imag):
            parameter._optim = {"weight_decay": 0.0}  # type: ignore[attr-defined]

    def forward(self) -> tuple[Tensor, Tensor]:
        """log a and c of the model discretised bilinearly, a = (1 + dt A / 2) / (1 - dt A / 2), both (H, N / 2)."""
        wide = torch.promote_types(self.C.dtype, torch.float32)
        log_dt, A_real, A_imag, B, C = (
            p.to(wide) for p in (self.log_dt, self.inv_A_real, self.A_imag, self.B, self.C.squeeze(0))
        )
        dt = log_dt.exp().unsqueeze(-1)
        half = 0.5 * dt * torch.complex(-A_real.exp(), A_imag)
        c = torch.complex(C[..., 0], C[..., 1]) * torch.complex(B[..., 0], B[..., 1]) * dt / (1 - half)
        return ((1 + half) / (1 - half)).log(), c
