"""The Triton kernels of `embedding` in the interpreter, float32 against float64. Run by the op's own tests."""

import pytest
import torch

from zoology.kernels.embedding import column_numbers, embedding, row_numbers, triton

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")


def tokens_of(kind, n, v, rng):
    tokens = torch.randint(v, (n,), generator=rng)
    if kind == "fillers":
        tokens[torch.rand(n, generator=rng) < 0.7] = 0
    elif kind == "one id":
        tokens[:] = v - 1
    return tokens


def scattered(grad, tokens, v):
    """Each id's rows of grad (R, N, D), summed in float64."""
    out = torch.zeros(grad.shape[0], v, grad.shape[2], dtype=torch.float64)
    return out.index_add(1, tokens, grad.double())


@pytest.mark.parametrize("kind", ["uniform", "fillers", "one id"])
@pytest.mark.parametrize(
    ("replicas", "n", "v", "d"), [(2, 300, 37, 16), (1, 1, 5, 7), (1, 1000, 10, 20), (2, 64, 90, 130)], ids=str
)
def test_the_gradient_is_the_sum_of_each_ids_rows(replicas, n, v, d, kind):
    rng = torch.Generator().manual_seed(0)
    tokens = tokens_of(kind, n, v, rng)
    grad = torch.randn(replicas, n, d, generator=rng)
    got = triton.gradient(grad, tokens.unsqueeze(0), None, None, v, 0.0)
    torch.testing.assert_close(got.double(), scattered(grad, tokens, v), rtol=1e-5, atol=1e-5)


def test_ids_beyond_16_bits():
    tokens = torch.tensor([0, 40_000, 32_767, 32_768, 40_000])
    grad = torch.arange(5.0).view(1, 5, 1) + 1
    got = triton.gradient(grad, tokens.unsqueeze(0), None, None, 40_001, 0.0)
    assert torch.equal(got.double(), scattered(grad, tokens, 40_001))


def test_rows_of_another_dtype_have_a_gradient_of_it():
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(9, 16, generator=rng).requires_grad_()
    tokens = torch.randint(9, (4, 10), generator=rng)
    rows = embedding(weight, tokens, dtype=torch.float16, implementation="triton")
    assert torch.equal(rows, weight.half()[tokens])
    grad = torch.randn(rows.shape, generator=rng).half()
    (got,) = torch.autograd.grad(rows, weight, grad)
    assert got.dtype == torch.float32
    want = scattered(grad.reshape(1, 40, 16), tokens.flatten(), 9)[0]
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "runs",
    [(32, 32, 32), (31, 33, 32), (1, 95), (64, 1, 31), (33, 30, 33), (16, 65, 15), (96,), (1, 31, 32, 32)],
    ids=str,
)
def test_segments_lie_anyhow_across_the_windows(runs):
    """Whole numbers, so that sums are exact: nothing is lost or taken twice at an edge."""
    tokens = torch.repeat_interleave(torch.arange(len(runs)), torch.tensor(runs))
    assert triton.window(96) == 32
    grad = torch.randint(-8, 8, (1, 96, 16), generator=torch.Generator().manual_seed(0)).float()
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    got = triton.gradient(grad[:, order].contiguous(), tokens[order].unsqueeze(0), None, None, len(runs), 0.0)
    assert torch.equal(got.double(), scattered(grad, tokens, len(runs)))


def test_outputs_and_gradients_of_the_public_function():
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 16, generator=rng).requires_grad_()
    for shape in ((), (0,), (3, 4)):
        tokens = torch.randint(20, shape, generator=rng)
        rows, expected = (embedding(weight, tokens, implementation=name) for name in ("triton", "reference"))
        assert torch.equal(rows, expected)
        grad = torch.randn(rows.shape, generator=rng)
        got, want = (torch.autograd.grad(x, weight, grad)[0] for x in (rows, expected))
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", ["uniform", "fillers", "one id"])
@pytest.mark.parametrize(("n", "v", "d"), [(300, 37, 16), (1, 5, 7), (1000, 10, 20), (64, 90, 130)], ids=str)
def test_what_was_dropped_passes_no_gradient(n, v, d, kind):
    rng = torch.Generator().manual_seed(0)
    tokens = tokens_of(kind, n, v, rng)
    weight = torch.randn(v, d, generator=rng).requires_grad_()
    torch.manual_seed(0)  # the rows' numbers are of torch's own generator
    columns = column_numbers(d, weight.device)
    numbers = (row_numbers(columns, n), columns)
    got, want = (embedding(weight, tokens, *numbers, dropout=0.3, implementation=i) for i in ("triton", "reference"))
    assert torch.equal(got, want)
    assert n * d < 100 or 0.1 < float((got == 0).float().mean()) < 0.5
    grad = torch.randn(n, d, generator=rng)
    (by_weight,) = torch.autograd.grad(got, weight, grad)
    exact = scattered((grad * (got != 0) / 0.7).unsqueeze(0), tokens, v)[0]
    torch.testing.assert_close(by_weight.double(), exact, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("own", [True, False])
def test_models_drop_what_their_own_numbers_say(own):
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 20, 16, generator=rng).requires_grad_()
    tokens = torch.randint(20, (2, 25), generator=rng)
    torch.manual_seed(0)
    columns = column_numbers(16, weight.device)
    rows = row_numbers(columns, *((3, 2, 25) if own else (2, 25)))

    def op(w, r, name="triton"):
        return embedding(w, tokens, r, columns, dropout=0.5, implementation=name)

    got = torch.func.vmap(op, in_dims=(0, 0 if own else None))(weight, rows)
    want = torch.stack([op(weight[i], rows[i] if own else rows, "reference") for i in range(3)])
    assert torch.equal(got, want)
    grad = torch.randn(got.shape, generator=rng)
    a, b = (torch.autograd.grad(x, weight, grad)[0] for x in (got, want))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dims", [(0, None), (0, 0), (None, 0)], ids=str)
def test_vmap_is_a_loop(dims):
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(*([3] if dims[0] == 0 else []), 20, 16, generator=rng).requires_grad_()
    tokens = torch.randint(20, ((3, 2, 25) if dims[1] == 0 else (2, 25)), generator=rng)

    def op(w, t):
        return embedding(w, t, implementation="triton")

    got = torch.func.vmap(op, in_dims=dims)(weight, tokens)
    parts = [x if d == 0 else [x] * 3 for x, d in zip((weight, tokens), dims, strict=True)]
    want = torch.stack([op(w, t) for w, t in zip(*parts, strict=True)])
    assert torch.equal(got, want)
    grad = torch.randn(got.shape, generator=rng)
    a, b = (torch.autograd.grad(x, weight, grad)[0] for x in (got, want))
    torch.testing.assert_close(a, b)


def test_vmap_in_vmap():
    rng = torch.Generator().manual_seed(0)
    weight, tokens = torch.randn(2, 3, 10, 16, generator=rng), torch.randint(10, (3, 8), generator=rng)
    inner = torch.func.vmap(lambda w, t: embedding(w, t, implementation="triton"))
    got = torch.func.vmap(inner, in_dims=(0, None))(weight, tokens)
    assert torch.equal(got, torch.stack([torch.stack([w[t] for w, t in zip(x, tokens, strict=True)]) for x in weight]))


def test_it_compiles_whole():
    rng = torch.Generator().manual_seed(0)
    weight, tokens = torch.randn(2, 20, 16, generator=rng), torch.randint(20, (30,), generator=rng)

    def step(w):
        return torch.func.vmap(lambda w: embedding(w, tokens, implementation="triton"))(w).square().sum()

    grads = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        w = weight.clone().requires_grad_()
        grads.append(torch.autograd.grad(function(w), w)[0])
    assert torch.equal(*grads)


def test_the_ops_hold_what_torch_asks_of_them():
    rng = torch.Generator().manual_seed(0)
    weight, tokens = torch.randn(2, 20, 16, generator=rng), torch.randint(20, (1, 30), generator=rng)
    grad = torch.randn(2, 30, 16, generator=rng)
    torch.manual_seed(0)
    columns = column_numbers(16, grad.device)
    numbers = (row_numbers(columns, 2, 30), columns)
    for rows, columns, dropout in ((None, None, 0.0), (*numbers, 0.2)):
        torch.library.opcheck(triton.forward, (weight.requires_grad_(), tokens, rows, columns, torch.float32, dropout))
        torch.library.opcheck(triton.gradient, (grad, tokens, rows, columns, 20, dropout))


def test_limits_are_named():
    with pytest.raises(ValueError, match=r"torch\.float64: the Triton kernel takes"):
        embedding(torch.zeros(5, 3).double(), torch.zeros(2, dtype=torch.int64), implementation="triton")
