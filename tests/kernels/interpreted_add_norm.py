"""The Triton kernel of `add_norm`'s gradient in the interpreter, against the reference in float64."""

import pytest
import torch
from errors import near

from zoology.kernels.add_norm import add_norm, triton

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")


def inputs(rows, width, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(*rows, width, generator=rng).requires_grad_() for _ in range(2))
    weight, bias = (torch.randn(width, generator=rng).requires_grad_() for _ in range(2))
    return x, y, weight, bias


def results(given, implementation, added=True, used=True):
    """s, u and the gradients, where both are read further on, or only u."""
    x, y, *rest = given
    s, u = add_norm(x, y if added else None, *rest, implementation=implementation)
    rng = torch.Generator().manual_seed(1)
    by_u, by_s = (torch.randn(x.shape, generator=rng).to(x.dtype) for _ in range(2))
    wanted = given if added else (x, *rest)
    outputs, grads = ((s, u), (by_s, by_u)) if used else ((u,), (by_u,))
    return s, u, *torch.autograd.grad(outputs, wanted, grads)


@pytest.mark.parametrize("used", [True, False], ids=["both", "u"])
@pytest.mark.parametrize("added", [True, False], ids=["sum", "alone"])
@pytest.mark.parametrize(
    ("rows", "width"), [((3, 5), 16), ((1,), 1), ((2, 300), 64), ((70,), 100), ((0, 4), 8)], ids=str
)
def test_outputs_and_gradients(rows, width, added, used):
    given = inputs(rows, width)
    wide = [x.detach().double().requires_grad_() for x in given]
    for a, b in zip(results(given, "triton", added, used), results(wide, "reference", added, used), strict=True):
        near(a, b)


def test_float64_stays_float64():
    given = [x.detach().double().requires_grad_() for x in inputs((4, 7), 12)]
    for a, b in zip(results(given, "triton"), results(given, "reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("added", [True, False], ids=["sum", "alone"])
@pytest.mark.parametrize("compiled", [False, True])
def test_vmap_is_a_loop(compiled, added):
    models = [inputs((2, 9), 12, seed) for seed in range(3)]
    given = [torch.stack(x).detach().requires_grad_() for x in zip(*models, strict=True)]

    def one(x, y, weight, bias):
        s, u = add_norm(x, y if added else None, weight, bias, implementation="triton")
        return s.sin() + u.cos()

    def all_of_them(*args):
        return torch.func.vmap(one)(*args)

    function = torch.compile(all_of_them, fullgraph=True, backend="aot_eager") if compiled else all_of_them
    got = function(*given)
    want = torch.stack([one(*args) for args in zip(*given, strict=True)])
    torch.testing.assert_close(got, want)
    wanted = given if added else [given[0], *given[2:]]
    for a, b in zip(*(torch.autograd.grad(o.square().sum(), wanted) for o in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_ops_hold_what_torch_asks_of_them():
    x, y, weight, bias = (t[None] for t in inputs((20,), 12))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for other in (y, None):
        torch.library.opcheck(triton.forward, (x, other, weight, bias, 1e-5), test_utils=checks)
        torch.library.opcheck(
            triton.gradient,
            (x.detach(), other if other is None else other.detach(), x.detach(), weight.detach(), 1e-5),
            test_utils=checks,
        )


def test_a_second_derivative_is_refused():
    x, y, weight, bias = inputs((5,), 8)
    _, u = add_norm(x, y, weight, bias, implementation="triton")
    (first,) = torch.autograd.grad(u.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.square().sum(), weight)
