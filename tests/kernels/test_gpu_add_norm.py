"""`add_norm` on a GPU: pytest -m gpu, and the name of this file. Errors are against float64."""

import pytest
import torch
from errors import no_worse

from zoology.kernels.add_norm import add_norm
from zoology.kernels.inline import inline

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
FLOOR = {torch.float32: 4e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}


def inputs(replicas, rows, width, dtype, seed=0):
    rng = torch.Generator("cuda").manual_seed(seed)
    x, y = (torch.randn(replicas, rows, width, generator=rng, device="cuda").to(dtype) for _ in range(2))
    weight, bias = (torch.randn(replicas, width, generator=rng, device="cuda") for _ in range(2))
    return [t.requires_grad_() for t in (x, y, weight, bias)]


def trained(given, implementation=None, added=True, compiled=False):
    def one(x, y, weight, bias):
        return add_norm(x, y if added else None, weight, bias, implementation=implementation)

    def all_of_them(*args):
        return torch.func.vmap(one)(*args)

    if compiled:
        inline()
    s, u = (torch.compile(all_of_them, fullgraph=True) if compiled else all_of_them)(*given)
    rng = torch.Generator("cuda").manual_seed(1)
    grads = [torch.randn(u.shape, generator=rng, device="cuda").to(u.dtype) for _ in range(2)]
    return s, u, *torch.autograd.grad((s, u), given if added else (given[0], *given[2:]), grads)


@DTYPES
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (5000, 64), (16384, 128), (999, 500)], ids=str)
def test_it_errs_no_more_than_rounding(rows, width, added, compiled, dtype):
    given = inputs(3, rows, width, dtype)
    want = trained([x.detach().double().requires_grad_() for x in given], "reference", added)
    reference = trained(given, "reference", added)
    for ours, theirs, exact in zip(trained(given, None, added, compiled), reference, want, strict=True):
        no_worse(ours, theirs, exact, 1.2, FLOOR[dtype])


@DTYPES
def test_it_repeats_bit_for_bit(dtype):
    given = inputs(12, 16384, 64, dtype)
    first = trained(given)
    for _ in range(5):
        for a, b in zip(first, trained(given), strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("memory_of_the_gpu")
def test_more_elements_than_32_bits_count():
    """R M D just over 2^31: the last rows are those of a call of their own."""
    rows = 2**31 // (12 * 64) + 1
    near = inputs(1, 50, 64, torch.bfloat16)
    far = [torch.zeros(12, rows, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    far += [torch.zeros(12, 64, device="cuda") for _ in range(2)]
    for x, own in zip(far, near, strict=True):
        x[-1:, -50 if x.dim() == 3 else 0 :] = own.detach()
        x.requires_grad_()
    by_x, alone = (
        torch.autograd.grad(torch.func.vmap(add_norm)(*given), given[0], [torch.ones_like(given[0])] * 2)[0]
        for given in (far, near)
    )
    assert torch.equal(by_x[-1:, -50:], alone)
