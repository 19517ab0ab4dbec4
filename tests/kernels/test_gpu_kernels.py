"""The Triton kernels on a GPU, compiled. Left out unless asked for: pytest -m gpu tests/kernels/test_gpu_kernels.py

Errors are against float64, and beside those of the reference in the same dtype on the same inputs.
"""

import pytest
import torch
from errors import error, no_worse

from zoology.kernels import hopper
from zoology.kernels.embedding import embedding
from zoology.kernels.embedding import reference as embedding_reference
from zoology.kernels.linear_cross_entropy import linear_cross_entropy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
RATIO, FLOOR = 1.2, {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
"""Errors may be RATIO times the reference's, or FLOOR, that of one rounding."""


def inputs(r, m, v, d, dtype, weight_dtype=None, seed=0):
    rng = torch.Generator("cuda").manual_seed(seed)
    hidden = torch.randn(r, m, d, generator=rng, device="cuda").to(dtype)
    weight = (torch.randn(r, v, d, generator=rng, device="cuda") * 2 * d**-0.5).to(weight_dtype or dtype)
    targets = torch.randint(v, (1, m), generator=rng, device="cuda")
    targets[:, ::7] = -100
    grad = torch.rand(r, m, generator=rng, device="cuda") + 0.5
    return hidden.requires_grad_(), weight.requires_grad_(), targets, grad


def results(hidden, weight, targets, grad, implementation):
    loss, right = linear_cross_entropy(hidden, weight, targets, implementation=implementation)
    return loss, *torch.autograd.grad(loss, (hidden, weight), grad.to(loss.dtype)), right


@DTYPES
@pytest.mark.parametrize("d", [16, 64, 100, 128, 256, 512])
@pytest.mark.parametrize(("m", "v"), [(1, 2), (1000, 777), (4096, 8192)], ids=str)
def test_cross_entropy_errs_no_more_than_the_reference(m, v, d, dtype):
    hidden, weight, targets, grad = inputs(2, m, v, d, dtype)
    if m == 1:
        targets.fill_(1)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    want = results(*wide, targets, grad, "reference")
    reference = results(hidden, weight, targets, grad, "reference")
    got = results(hidden, weight, targets, grad, "triton")
    for name, ours, theirs, exact in zip(("loss", "hidden", "weight"), got, reference, want, strict=False):
        no_worse(ours, theirs, exact, RATIO, FLOOR[dtype], name)
    assert (got[3] == want[3]).float().mean() > (0.995 if m > 1 else 0)


def test_cross_entropy_takes_a_float32_table_for_bfloat16_rows():
    hidden, weight, targets, grad = inputs(2, 500, 300, 64, torch.bfloat16, torch.float32)
    got = results(hidden, weight, targets, grad, "triton")
    rounded = weight.detach().bfloat16().requires_grad_()
    want = results(hidden, rounded, targets, grad, "triton")
    assert got[2].dtype == torch.float32
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[2].bfloat16(), want[2])


@DTYPES
@pytest.mark.parametrize("r", [1, 12])
def test_cross_entropy_repeats_bit_for_bit(r, dtype):
    arguments = inputs(r, 3001, 1000, 64, dtype)
    first = results(*arguments, "triton")
    for _ in range(5):
        for a, b in zip(first, results(*arguments, "triton"), strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("memory_of_the_gpu")
def test_cross_entropy_of_more_elements_than_32_bits_count():
    """M D just over 2^31 within one replica: the last rows are those of a call of their own."""
    d, rows = 512, 2**22 + 64
    hidden = torch.zeros(1, rows, d, device="cuda", dtype=torch.bfloat16)
    hidden[:, -64:] = torch.randn(64, d, device="cuda").bfloat16()
    weight = torch.randn(1, 40, d, device="cuda").bfloat16().requires_grad_()
    targets = torch.full((1, rows), -100, device="cuda")
    targets[:, -64:] = torch.arange(64, device="cuda") % 40
    far, _ = linear_cross_entropy(hidden, weight, targets)
    near, _ = linear_cross_entropy(hidden[:, -64:], weight, targets[:, -64:])
    assert torch.equal(far[:, -64:], near)
    assert not far[:, :-64].any()
    (a,), (b,) = (torch.autograd.grad(x.sum(), weight) for x in (far, near))
    torch.testing.assert_close(a, b)


def losses(hidden, weight, tokens, targets):
    """A loss through both ops: R models that read the same tokens."""

    def one(h, w):
        rows = h + embedding(w, tokens).to(h.dtype)
        return linear_cross_entropy(rows, w, targets)

    loss, right = torch.func.vmap(one)(hidden, weight)
    return loss.mean(1).sum(), right


def step(hidden, weight, tokens, targets, function=losses):
    loss, right = function(hidden, weight, tokens, targets)
    return loss.detach(), right, *torch.autograd.grad(loss, (hidden, weight))


def step_inputs(seed=0):
    hidden, weight, targets, _ = inputs(3, 600, 500, 64, torch.bfloat16, torch.float32, seed)
    tokens = torch.randint(500, (600,), generator=torch.Generator("cuda").manual_seed(seed), device="cuda")
    return hidden, weight, tokens, targets[0]


def test_vmap_is_a_loop():
    hidden, weight, tokens, targets = step_inputs()
    got = step(hidden, weight, tokens, targets)
    loop = [step(hidden[i : i + 1], weight[i : i + 1], tokens, targets) for i in range(3)]
    assert torch.equal(got[1], torch.cat([x[1] for x in loop]))
    for i in (2, 3):
        torch.testing.assert_close(got[i], torch.cat([x[i] for x in loop]))


def test_it_compiles_whole():
    arguments = step_inputs()
    want, got = step(*arguments), step(*arguments, torch.compile(losses, fullgraph=True))
    assert (got[1] == want[1]).float().mean() > 0.99
    for a, b in zip((got[0], *got[2:]), (want[0], *want[2:]), strict=True):
        assert (a.float() - b.float()).norm() < 1e-2 * b.float().norm()


def test_a_captured_graph_replays_on_new_inputs():
    arguments = step_inputs()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step(*arguments)
    for seed in (1, 2):
        new = step_inputs(seed)
        with torch.no_grad():
            for old, x in zip(arguments, new, strict=True):
                old.copy_(x)
            for x in outputs:
                x.fill_(torch.nan if x.is_floating_point() else 1)
        graph.replay()
        for a, b in zip(outputs, step(*new), strict=True):
            assert torch.equal(a, b)


@DTYPES
@pytest.mark.parametrize("d", [16, 64, 130])
@pytest.mark.parametrize("kind", ["uniform", "fillers", "one id"])
@pytest.mark.parametrize(("n", "v"), [(1, 3), (5000, 777), (16384, 8192)], ids=str)
def test_embedding_gradients(n, v, kind, d, dtype):
    rng = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(2, v, d, generator=rng, device="cuda").to(dtype).requires_grad_()
    tokens = torch.randint(v, (n,), generator=rng, device="cuda")
    if kind != "uniform":
        tokens[torch.rand(n, generator=rng, device="cuda") < (0.7 if kind == "fillers" else 2)] = 0
    rows = torch.func.vmap(lambda w: embedding(w, tokens))(weight)
    grad = torch.randn(rows.shape, generator=rng, device="cuda").to(dtype)
    assert torch.equal(rows, torch.stack([embedding_reference.embedding(w, tokens) for w in weight]))
    first, second = (torch.autograd.grad(rows, weight, grad, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    want = torch.zeros(2, v, d, device="cuda", dtype=torch.float64).index_add(1, tokens, grad.double())
    assert error(first, want) < {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]


def test_the_check_of_the_compiler_refuses_wrong_code(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    for wrong in (0.5, float("nan")):
        with pytest.raises(RuntimeError, match="made wrong code: set TRITON_PTXAS_PATH"):
            hopper.check(("test", wrong), torch.device("cuda"), lambda wrong=wrong: {"the loss": wrong})
    hopper.check("test", torch.device("cuda"), lambda: {"the loss": 0.004})
