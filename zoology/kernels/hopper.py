"""A check, at first use, that the compiler made right code.

The ptxas of CUDA 12 miscompiles some products on Hopper (compute capability 9.0) whose left operand comes from
registers, as the rounded probabilities of `linear_cross_entropy` do: numbers are wrong and nothing is reported. Triton
brings its own ptxas, of CUDA 12 up to Triton 3.8. No run on a CPU can find this. So the first call of such a kernel,
for each width and dtype, runs it on a few hundred rows and compares with float64: milliseconds, once in a process.
"""

from collections.abc import Callable, Hashable

import torch

from zoology.kernels import ahead

LIMIT = 0.03
"""Relative error beyond which a 16-bit kernel is not rounding but wrong. Rounding stays under 0.01."""

_checked: set[Hashable] = set()


def check(key: Hashable, device: torch.device, errors: Callable[[], dict[str, float]]) -> None:
    """Run `errors` once for each key on each Hopper device; not during the capture of a CUDA graph, nor elsewhere.

    Args:
        key: names the kernel and what it was compiled for.
        device: where it will run.
        errors: runs a small instance; the relative error of each output against float64.

    Raises:
        RuntimeError: an error is beyond `LIMIT` or NaN.
    """
    if device.type != "cuda" or (key, device) in _checked or torch.cuda.is_current_stream_capturing():
        return
    if ahead.looking():
        errors()
        return
    if torch.cuda.get_device_capability(device)[0] == 9:
        for name, error in errors().items():
            if not error <= LIMIT:
                raise RuntimeError(
                    f"{key}: {name} is off by {error:.2g} against float64, so the compiler made wrong code: "
                    "set TRITON_PTXAS_PATH to the ptxas of CUDA 13, or install a newer Triton"
                )
    _checked.add((key, device))
