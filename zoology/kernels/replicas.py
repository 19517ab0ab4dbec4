"""What the ops with a Triton kernel share: which implementation runs, how vmap becomes their replica axis, and how a
kernel's registers are limited."""

import importlib.util
import os
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs kernels on a CPU: exact in float32, silently wrong in bfloat16."""

_warned = False


def choose(implementation: str | None, device: torch.device) -> str:
    """ "triton" or "reference": by name, or where none is given by the device.

    Without a name, CUDA tensors go to Triton and all others to the reference. A machine with CUDA and no Triton gets
    the reference, and one warning in the life of the process.

    Raises:
        ValueError: an unknown name, or "triton" where it cannot run.
    """
    global _warned
    if implementation is None:
        if device.type != "cuda":
            return "reference"
        if not HAS_TRITON:
            if not _warned:
                warnings.warn("Triton is not installed: the slower PyTorch kernels run", stacklevel=3)
                _warned = True
            return "reference"
        return "triton"
    if implementation not in ("reference", "triton"):
        raise ValueError(f"implementation = {implementation!r}: must be 'reference', 'triton' or None")
    if implementation == "triton" and not HAS_TRITON:
        raise ValueError("implementation = 'triton': Triton is not installed; `pip install triton`")
    if implementation == "triton" and device.type != "cuda" and not INTERPRETED:
        raise ValueError(f"implementation = 'triton': tensors are on {device}, and must be on a CUDA device")
    return implementation


def channels_dense(x: Tensor) -> Tensor:
    """A tensor whose last axis lies dense and whose tokens are near enough to count in 32 bits; others any stride."""
    return x if x.stride(-1) == 1 and 0 <= x.stride(-2) < 2**22 else x.contiguous()


def register_limit(registers: int | None) -> dict[str, int]:
    """Registers of a thread at most, as a Triton kernel's keyword; none where there is no limit, as not every GPU's
    compiler knows of one."""
    return {"maxnreg": registers} if registers else {}


def fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    """vmap's axis in front of the replica axis, as one: (R, ...) for each of `size` -> (size R, ...).

    Without an axis (`dim` None) every one sees the same tensor; with R = 1 that is a view and nothing is copied.
    """
    x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)


def fold_all(tensors: Iterable[Tensor | None], dims: Iterable[int | None], size: int) -> list[Tensor | None]:
    """`fold` of each, None for None."""
    return [None if x is None else fold(x, dim, size) for x, dim in zip(tensors, dims, strict=True)]


def fold_shared(x: Tensor, dim: int | None, size: int, replicas: int) -> Tensor:
    """As `fold`, for a tensor whose first axis is 1 where the `replicas` share it. What all share stays 1."""
    if dim is None and x.shape[0] == 1:
        return x
    x = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
    return x.expand(size, replicas, *x.shape[2:]).flatten(0, 1)


def unfold(x: Tensor, size: int) -> Tensor:
    """The inverse of `fold`: (size R, ...) -> (size, R, ...)."""
    return x.unflatten(0, (size, -1)) if x.numel() else x.reshape(size, x.shape[0] // size, *x.shape[1:])
