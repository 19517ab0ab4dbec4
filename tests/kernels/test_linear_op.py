"""A linear map of many rows is `F.linear`, in its gradients, under vmap and compiled."""

import pytest
import torch
import torch.nn.functional as F

from zoology.kernels import linear as module
from zoology.kernels.inline import inline
from zoology.kernels.linear import linear


def inputs(shape=(3, 700), k=5, n=7, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((*shape, k), (n, k), (n,)))
    return [t.to(dtype).requires_grad_() for t in (x, weight, bias)]


def results(function, given):
    y = function(*given)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y, *torch.autograd.grad(y, given, cotangent)


@pytest.mark.parametrize("shape", [(2,), (3, 700), (16, 256), (4099,)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_map_of_torch(shape, biased):
    given = inputs(shape)[: 3 if biased else 2]
    for a, b in zip(results(linear, given), results(F.linear, given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("compiled", [False, True])
def test_vmap_is_a_loop(compiled):
    models = [inputs((16, 256), seed=seed) for seed in range(3)]
    given = [torch.stack(x).detach().requires_grad_() for x in zip(*models, strict=True)]

    def stacked(*args):
        return torch.func.vmap(linear)(*args)

    function = torch.compile(stacked, fullgraph=True, backend="aot_eager") if compiled else stacked
    loop = [results(F.linear, [x[i].detach().requires_grad_() for x in given]) for i in range(3)]
    got = results(function, given)
    torch.testing.assert_close(got[0], torch.stack([r[0] for r in loop]))
    y = torch.stack([F.linear(*(x[i] for x in given)) for i in range(3)])
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a, b in zip(got[1:], torch.autograd.grad(y, given, cotangent), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_autocast_rounds_and_the_weights_gradient_is_wide():
    given = inputs((16, 256), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, by_x, by_weight, _ = results(linear, given)
        want = F.linear(*given)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, want, rtol=2e-2, atol=2e-2)
    assert (by_x.dtype, by_weight.dtype) == (torch.float32, torch.float32)
    exact = results(F.linear, [x.detach().double().requires_grad_() for x in given])
    assert (by_weight - exact[2]).norm() < 1e-2 * exact[2].norm()


def test_the_compiler_sees_into_it():
    """Compiled, the forward pass is torch's own product of three axes, and there is nothing that may be a copy."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._inductor.decomposition import select_decomp_table

    inline()
    seen = []

    def keep(graph, example):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, decompositions=select_decomp_table())
    given = [x.detach()[None].expand(2, *x.shape).clone().requires_grad_() for x in inputs((16, 256))]
    results(torch.compile(torch.func.vmap(linear), backend=backend), given)
    assert [name for name in seen if "bmm" in name or "zoology" in name] == [
        "aten.bmm.default",
        "zoology.linear_gradient.default",
    ]
    assert not [name for name in seen if "expand" in name or "clone" in name]


def test_the_ops_hold_what_torch_asks_of_them():
    x, weight, _ = (t[None].detach().requires_grad_() for t in inputs((2048,)))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(module.forward, (x, weight), test_utils=checks)
    grad = torch.ones(1, 2048, 7, dtype=torch.float64)
    torch.library.opcheck(module.gradient, (grad, x.detach(), weight.detach(), torch.float32), test_utils=checks)


def test_a_second_derivative_is_refused():
    given = inputs((16, 256))
    (first,) = torch.autograd.grad(linear(*given).square().sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.square().sum(), given[1])
