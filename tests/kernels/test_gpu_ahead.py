"""Kernels compiled ahead, on a GPU: pytest -m gpu, and the name of this file."""

import threading

import pytest
import torch

from zoology.kernels.ahead import compile_ahead

triton = pytest.importorskip("triton")
tl = triton.language

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@triton.jit
def count_kernel(x, D: tl.constexpr):
    at = x + tl.program_id(0) * D + tl.arange(0, D)
    tl.store(at, tl.load(at) + 1)


def test_a_kernel_is_compiled_elsewhere_and_not_launched(monkeypatch):
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    compiled, done = [], threading.Event()

    def note(*, fn, **_):
        compiled.append((fn.name, threading.current_thread() is threading.main_thread()))
        done.set()

    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", note)
    x = torch.zeros(4, 32, device="cuda", dtype=torch.int32)
    compile_ahead(lambda: count_kernel[(4,)](x, D=32))
    assert done.wait(60)
    torch.cuda.synchronize()
    assert not x.any()
    count_kernel[(4,)](x, D=32)
    assert bool((x == 1).all())
    assert compiled == [("count_kernel", False)]


def test_the_check_of_the_compiler_waits_for_kernels_that_run():
    """While kernels are left out, what they would have written is not there to be compared."""
    from zoology.kernels import hopper

    calls = []

    def errors():
        calls.append(1)
        return {"it": 0.0 if len(calls) > 1 else float("nan")}

    device = torch.device("cuda")
    compile_ahead(lambda: hopper.check("a test of the check", device, errors))
    hopper.check("a test of the check", device, errors)
    hopper.check("a test of the check", device, errors)
    assert len(calls) == (2 if torch.cuda.get_device_capability(device)[0] == 9 else 1)
