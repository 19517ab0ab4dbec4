"""A table of embeddings: the reference, then the Triton kernel of its gradient."""

import pytest
import torch
from interpreter import needs_triton, run

from zoology.kernels.embedding import embedding


@pytest.mark.parametrize("shape", [(0,), (7,), (2, 3), ()], ids=str)
def test_the_reference_is_its_definition(shape):
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=rng, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(5, shape, generator=rng)
    rows = embedding(weight, tokens)
    assert torch.equal(rows, weight[tokens])
    grad = torch.randn(rows.shape, generator=rng, dtype=torch.float64)
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for token, row in zip(tokens.flatten().tolist(), grad.reshape(-1, 3), strict=True):
        expected[token] += row
    torch.testing.assert_close(torch.autograd.grad(rows, weight, grad)[0], expected)


def test_rows_come_in_the_dtype_asked_for():
    weight, tokens = torch.randn(5, 3).requires_grad_(), torch.tensor([1, 4])
    rows = embedding(weight, tokens, dtype=torch.bfloat16)
    assert torch.equal(rows, weight[tokens].bfloat16())
    assert torch.autograd.grad(rows.sum(), weight)[0].dtype == torch.float32


def test_bad_input_is_named():
    weight, tokens = torch.zeros(5, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(5,\): must be \(V, D\)"):
        embedding(weight[:, 0], tokens)
    with pytest.raises(ValueError, match=r"torch\.int32: must be"):
        embedding(weight, tokens.int())
    with pytest.raises(ValueError, match="'fast': must be"):
        embedding(weight, tokens, implementation="fast")
    numbers = (torch.ones(4, dtype=torch.int32), torch.ones(3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"dropout = 0\.1: must be from 0 to below 1, and needs both"):
        embedding(weight, tokens, dropout=0.1)
    with pytest.raises(ValueError, match=r"dropout = 1\.0: must be"):
        embedding(weight, tokens, *numbers, dropout=1.0)
    with pytest.raises(ValueError, match=r"\(4,\), \(4,\): must be \(4,\), \(3,\)"):
        embedding(weight, tokens, numbers[0], numbers[0], dropout=0.1)
    with pytest.raises(ValueError, match=r"torch\.float32, torch\.int32: must be torch\.int32"):
        embedding(weight, tokens, numbers[0].float(), numbers[1], dropout=0.1)


@needs_triton
def test_the_kernel_in_the_interpreter():
    run("interpreted_embedding.py")
