"""How the time of the kernels grows with the length of a sequence, on this machine's GPU, beside what others offer.

Letters: B batch (1), T time, H heads.
"""

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoology.kernels.linear_attention import linear_attention
from zoology.kernels.timing import milliseconds

PASSES = ("forward", "forward+backward")
HEAD = 64
"""Width of a head's values, and of its keys where there are no Taylor features."""
FEATURE_DIM = 16
"""Width of a head's keys before Taylor features."""


class Method(NamedTuple):
    """What is timed: a function of q, k (1, T, H, width), v (1, T, H, 64) and log decays (1, T, H)."""

    width: int
    run: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def methods() -> tuple[dict[str, Method], str]:
    """Ours, PyTorch's attention, and those of flash-linear-attention; or why the last are left out, else ""."""
    found = {
        "based": Method(FEATURE_DIM, lambda q, k, v, _: linear_attention(q, k, v, feature_map="taylor")[0]),
        "linear-attention": Method(HEAD, lambda q, k, v, g: linear_attention(q, k, v, normalise=False, log_decay=g)[0]),
        "attention": Method(HEAD, _attention(SDPBackend.FLASH_ATTENTION)),
        "attention-cudnn": Method(HEAD, _attention(SDPBackend.CUDNN_ATTENTION)),
    }
    try:
        from fla.ops.based import parallel_based
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError as error:
        return found, f"the kernels of flash-linear-attention are left out: {error}"
    found["fla-based"] = Method(FEATURE_DIM, lambda q, k, v, _: parallel_based(q, k, v))
    found["fla-simple-gla"] = Method(HEAD, lambda q, k, v, g: chunk_simple_gla(q, k, v, g=g, scale=1.0)[0])
    return found, ""


def _attention(backend: SDPBackend) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return run


def inputs(width: int, length: int, heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q and k of unit length, v, in bfloat16, and log decays in float32, all on the GPU and with gradients."""
    shape = (1, length, heads)
    q, k = (F.normalize(torch.randn(*shape, width, device="cuda"), dim=-1).bfloat16() for _ in range(2))
    v = torch.randn(*shape, HEAD, device="cuda").bfloat16()
    g = F.logsigmoid(torch.randn(*shape, device="cuda") + 4)
    return tuple(x.requires_grad_() for x in (q, k, v, g))


def measure(methods: Mapping[str, Method], lengths: Sequence[int], heads: int) -> Iterator[dict[str, Any]]:
    """A row for each method, length and pass, as it comes: the median milliseconds of CUDA graphs, or what went wrong.

    The columns are `COLUMNS` and `MACHINE`. `milliseconds` is None where `error` says why, as where memory is short.
    """
    about = machine()
    for length in lengths:
        for name, method in methods.items():
            for what in PASSES:
                row = {
                    "method": name,
                    "pass": what,
                    "length": length,
                    "heads": heads,
                    "milliseconds": None,
                    "error": "",
                }
                try:
                    row["milliseconds"] = _time(method, what, length, heads)
                except Exception as error:  # one method that cannot do a length leaves the others
                    first = next(iter(str(error).strip().splitlines()), "")
                    row["error"] = f"{type(error).__name__}: {first}"[:200]
                with contextlib.suppress(Exception):
                    torch.cuda.empty_cache()
                yield row | about


def _time(method: Method, what: str, length: int, heads: int) -> float:
    given = inputs(method.width, length, heads)
    if what == "forward":
        with torch.no_grad():
            return milliseconds(lambda: method.run(*given))
    grad = torch.randn(1, length, heads, HEAD, device="cuda").bfloat16()
    return milliseconds(lambda: torch.autograd.grad(method.run(*given), given, grad, allow_unused=True))


def machine() -> dict[str, Any]:
    """What the numbers are made on and with."""
    versions = {}
    for key, package in (("torch", "torch"), ("triton", "triton"), ("fla", "fla-core"), ("zoology", "zoology")):
        try:
            versions[key] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[key] = ""
    return {
        "processor": torch.cuda.get_device_name(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **versions,
    }


COLUMNS = ("method", "pass", "length", "heads", "milliseconds", "error")
MACHINE = ("processor", "date", "torch", "triton", "fla", "zoology")
