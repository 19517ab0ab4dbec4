"""The Triton kernel of `take_rows`' gradient in the interpreter, against the reference. The op's tests run it."""

import pytest
import torch
from torch.func import vmap

from zoology.kernels.inline import inline
from zoology.kernels.take_rows import take_rows

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")


def inputs(batch, time, labels, width, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, width, generator=rng).requires_grad_()
    return (
        x,
        torch.rand(batch, time, generator=rng).argsort(1)[:, :labels],
        torch.randn(batch, labels, width, generator=rng),
    )


def both(x, positions, grad, implementation):
    y = take_rows(x, positions, implementation=implementation)
    return y, *torch.autograd.grad(y, x, grad)


@pytest.mark.parametrize(
    ("batch", "time", "labels", "width"),
    [(3, 5, 2, 16), (1, 1, 1, 1), (2, 130, 70, 64), (2, 64, 64, 20), (2, 70, 3, 300), (0, 4, 2, 8), (2, 6, 0, 8)],
    ids=str,
)
def test_rows_and_gradient_are_the_references_to_the_bit(batch, time, labels, width):
    given = inputs(batch, time, labels, width)
    for got, want in zip(both(*given, "triton"), both(*given, "reference"), strict=True):
        assert torch.equal(got, want)


def test_rows_taken_more_than_once_add_up():
    """As the padding is, which is time 0 again and again."""
    x, positions, grad = inputs(3, 80, 40, 16)
    positions[:, 20:] = 0
    for got, want in zip(both(x, positions, grad, "triton"), both(x, positions, grad, "reference"), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_vmap_is_a_loop(shared, compiled):
    each = [inputs(2, 9, 4, 8, seed) for seed in range(3)]
    x, positions, grad = (torch.stack([given[i] for given in each]) for i in range(3))
    positions = positions[0] if shared else positions
    run = vmap(lambda x, p: take_rows(x, p, implementation="triton"), in_dims=(0, None if shared else 0))
    if compiled:
        inline()
        run = torch.compile(run, fullgraph=True, backend="aot_eager")
    y = run(x, positions)
    (by_x,) = torch.autograd.grad(y, x, grad)
    for i in range(3):
        mine = positions if shared else positions[i]
        want = both(x[i].detach().requires_grad_(), mine, grad[i], "reference")
        assert torch.equal(y[i], want[0])
        assert torch.equal(by_x[i], want[1])


def test_there_is_no_second_derivative():
    x, positions, grad = inputs(1, 4, 2, 8)
    y = take_rows(x, positions, implementation="triton")
    (by_x,) = torch.autograd.grad(y, x, grad.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        by_x.sum().backward()
