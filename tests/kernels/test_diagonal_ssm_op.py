"""The diagonal state-space model against its definition, written out in complex float64."""

import itertools

import pytest
import torch

from zoology.kernels.diagonal_ssm import diagonal_ssm, diagonal_ssm_step


def inputs(time, seed=0):
    rng = torch.Generator().manual_seed(seed)
    draw = [torch.randn(*s, generator=rng, dtype=torch.float64) for s in ((2, time, 3), (3, 4), (3, 4), (3, 4, 2))]
    x, rate, phase, c = draw
    state = torch.randn(2, 3, 4, 2, generator=rng, dtype=torch.float64)
    log_a = torch.complex(-rate.abs(), 3 * phase)
    return tuple(t.requires_grad_() for t in (x, log_a, torch.view_as_complex(c), state))


def definition(x, log_a, c, state):
    h, rows = torch.complex(state[..., 0], state[..., 1]), []
    for t in range(x.shape[1]):
        h = log_a.exp() * h + x[:, t, :, None]
        rows.append(2 * (c * h).real.sum(-1))
    return torch.stack(rows, 1), torch.stack((h.real, h.imag), -1)


@pytest.mark.parametrize("time", [1, 2, 17, 40])
def test_outputs_and_gradients_follow_the_definition(time):
    arguments = inputs(time)
    got = diagonal_ssm(*arguments[:3], state=arguments[3], output_state=True)
    want = definition(*arguments)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    rng = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=rng, dtype=t.dtype) for t in want]
    for one, other in zip(
        torch.autograd.grad(got, arguments, cotangents), torch.autograd.grad(want, arguments, cotangents), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    x, log_a, c, state = arguments
    y, none = diagonal_ssm(x, log_a, c)
    assert none is None
    torch.testing.assert_close(y, definition(x, log_a, c, torch.zeros_like(state))[0])


def test_pieces_and_steps_give_what_the_whole_gives():
    x, log_a, c, start = (t.detach() for t in inputs(23))
    whole, final = diagonal_ssm(x, log_a, c, state=start, output_state=True)
    for cuts in ((0, 1, 23), (0, 8, 8, 9, 23)):
        state, pieces = start, []
        for i, j in itertools.pairwise(cuts):
            y, state = diagonal_ssm(x[:, i:j], log_a, c, state=state, output_state=True)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
        torch.testing.assert_close(state, final)
    state = start
    for t in range(23):
        y, state = diagonal_ssm_step(x[:, t], log_a, c, state)
        torch.testing.assert_close(y, whole[:, t])
    torch.testing.assert_close(state, final)


def test_a_pure_rotation_remembers_its_first_input():
    """|a| = 1: what is put in turns, and neither grows nor fades."""
    log_a = torch.complex(torch.zeros(1, 1), torch.full((1, 1), 0.5)).to(torch.complex128)
    x = torch.zeros(1, 100, 1, dtype=torch.float64)
    x[0, 0] = 1.0
    y, state = diagonal_ssm(x, log_a, torch.ones_like(log_a), output_state=True)
    torch.testing.assert_close(y[0, :, 0], 2 * torch.cos(0.5 * torch.arange(100, dtype=torch.float64)))
    torch.testing.assert_close(state.square().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_bad_input_is_named():
    x, log_a, c, state = (t.detach() for t in inputs(4))
    with pytest.raises(ValueError, match=r"\(2, 4, 3\), \(2, 4\), \(3, 4\): must be"):
        diagonal_ssm(x, log_a[:2], c)
    with pytest.raises(ValueError, match=r"state has the shape \(2, 3, 4\): must be \(2, 3, 4, 2\)"):
        diagonal_ssm(x, log_a, c, state=state[..., 0])
