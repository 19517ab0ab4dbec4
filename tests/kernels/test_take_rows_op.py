"""Rows that are taken of sequences: the reference, then the Triton kernel of the gradient."""

import pytest
import torch
from interpreter import needs_triton, run

from zoology.kernels.take_rows import take_rows


def test_the_reference_is_its_definition():
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[4, 0], [1, 1], [0, 2]])
    y = take_rows(x, positions)
    for b in range(3):
        for n in range(2):
            assert torch.equal(y[b, n], x[b, positions[b, n]])


@pytest.mark.parametrize(("x", "positions"), [((3, 4), (3, 2)), ((3, 4, 5), (2, 2)), ((3, 4, 5), (3, 2, 1))], ids=str)
def test_bad_input_is_named(x, positions):
    with pytest.raises(ValueError, match=r"must be \(B, T, D\), \(B, N\)"):
        take_rows(torch.zeros(x), torch.zeros(positions, dtype=torch.int64))


@needs_triton
def test_the_kernel_in_the_interpreter():
    run("interpreted_take_rows.py")
