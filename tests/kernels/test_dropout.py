"""Dropout with a random number for each row: as good as one for each element."""

import pytest
import torch

from zoology.kernels.embedding.dropout import column_numbers, drop, row_numbers

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_elements_are_dropped_as_often_as_asked_and_not_together(p):
    torch.manual_seed(0)
    rows, width = 40000, 96
    columns = column_numbers(width, CPU)
    y = drop(torch.ones(rows, width), row_numbers(columns, rows), columns, p)
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full((int(kept.sum()),), 1 / (1 - p)))
    x = (kept.double() - (1 - p)) / (p * (1 - p)) ** 0.5
    assert x.mean(0).abs().max() < 5 / rows**0.5
    assert abs(x.mean()) < 4 / x.numel() ** 0.5
    together = (x.T @ x / rows).fill_diagonal_(0)
    assert together.abs().max() < 5 / rows**0.5
    assert abs(x.sum(1).var() / width - 1) < 5 * (2 / rows) ** 0.5
    assert abs((x[1:] * x[:-1]).mean()) < 4 / x.numel() ** 0.5


def test_the_generator_says_which():
    columns = column_numbers(16, CPU)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(drop(torch.ones(3, 5, 16), row_numbers(columns, 3, 5), columns, 0.5))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_columns_of_a_wide_model_are_all_different():
    assert column_numbers(4096, CPU).unique().numel() == 4096


def test_gradients_pass_where_elements_did():
    x = torch.randn(7, 16).bfloat16().requires_grad_()
    columns = column_numbers(16, CPU)
    y = drop(x, row_numbers(columns, 7), columns, 0.25)
    assert y.dtype == torch.bfloat16
    (by_x,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(by_x == 0, y == 0)
