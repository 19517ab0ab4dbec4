"""`take_rows` on a GPU: pytest -m gpu, and the name of this file."""

import pytest
import torch

from zoology.kernels.inline import inline
from zoology.kernels.take_rows import take_rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def inputs(replicas, batch, time, labels, width, dtype):
    rng = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(replicas, batch, time, width, generator=rng, device="cuda").to(dtype).requires_grad_()
    positions = torch.rand(batch, time, generator=rng, device="cuda").argsort(1)[:, :labels].contiguous()
    return x, positions, torch.randn(replicas, batch, labels, width, generator=rng, device="cuda").to(dtype)


def trained(x, positions, grad, implementation=None, compiled=False):
    def run(x, positions):
        return torch.func.vmap(lambda one: take_rows(one, positions, implementation=implementation))(x)

    if compiled:
        inline()
        run = torch.compile(run, fullgraph=True)
    y = run(x, positions)
    return y, *torch.autograd.grad(y, x, grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("time", "labels", "width"), [(64, 4, 64), (256, 64, 64), (1000, 300, 128), (70, 5, 500), (9, 2, 24)], ids=str
)
def test_it_is_the_reference_to_the_bit(time, labels, width, compiled, dtype):
    given = inputs(3, 20, time, labels, width, dtype)
    for got, want in zip(trained(*given, compiled=compiled), trained(*given, "reference"), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_taken_more_than_once_add_up_the_same_in_every_run(dtype):
    x, positions, grad = inputs(3, 20, 200, 100, 64, dtype)
    positions[:, 30:] = 0
    first = trained(x, positions, grad)
    want = trained(x.detach().double().requires_grad_(), positions, grad.double(), "reference")
    for got, exact in zip(first, want, strict=True):
        assert float((got.double() - exact).norm()) <= (4e-3 if dtype == torch.bfloat16 else 1e-6) * float(exact.norm())
    for _ in range(5):
        assert all(map(torch.equal, first, trained(x, positions, grad)))


@pytest.mark.usefixtures("memory_of_the_gpu")
def test_more_elements_than_32_bits_count():
    """R B T D just over 2^31: the last sequence is as it is alone."""
    batch = 2**31 // (256 * 64) + 1
    positions = torch.arange(8, device="cuda").expand(batch, 8) * 3
    x = torch.zeros(1, batch, 256, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
    grad = torch.randn(1, batch, 8, 64, device="cuda").bfloat16()
    _, by_x = trained(x, positions, grad)
    assert torch.equal(by_x[0, -1, :24:3], grad[0, -1])
    assert not by_x[0, -1, 1].any()
