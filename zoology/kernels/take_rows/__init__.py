"""Rows of each sequence, picked by time: what the head reads of a model, where few positions carry a label.

    y[b, n] = x[b, positions[b, n]]

Letters: R replicas, B sequences, T time, N positions, D width.
"""

import torch
from torch import Tensor

from zoology.kernels.replicas import choose
from zoology.kernels.take_rows import reference

__all__ = ["take_rows"]


def take_rows(x: Tensor, positions: Tensor, *, implementation: str | None = None) -> Tensor:
    """Rows of sequences.

    Args:
        x: (B, T, D).
        positions: (B, N) times, each from 0 to T - 1, in any order and as often as wanted.
        implementation: "triton", "reference", or None for the device's. Only gradients differ: in Triton each is
            written once, where PyTorch zeroes all and adds rows to it, atomically. torch.compile fuses the forward pass
            with what stands around it. Of float64 the reference makes both.

    Returns:
        (B, N, D). In Triton its gradient is taken once.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if x.dim() != 3 or positions.dim() != 2 or x.shape[0] != positions.shape[0]:
        raise ValueError(
            f"x, positions have shapes {tuple(x.shape)}, {tuple(positions.shape)}: must be (B, T, D), (B, N)"
        )
    if choose(implementation, x.device) == "reference" or x.dtype == torch.float64:
        return reference.take_rows(x, positions)
    from zoology.kernels.take_rows import triton

    return triton.forward(x.unsqueeze(0), positions.unsqueeze(0)).squeeze(0)
