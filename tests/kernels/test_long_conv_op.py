"""The long convolution against its definition, written out in float64."""

import pytest
import torch

from zoology.kernels.long_conv import long_conv, long_conv_inputs, long_conv_step


def inputs(time, taps, past, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    shapes = ((2, time, 3), (3, taps), (2, past, 3))
    return tuple(torch.randn(*s, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes)


def definition(x, kernel, past):
    seen = torch.cat((past, x), 1)
    rows = []
    for t in range(past.shape[1], seen.shape[1]):
        rows.append(sum(kernel[:, j] * seen[:, t - j] for j in range(min(t + 1, kernel.shape[1]))))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("block", [1, 4, 64])
@pytest.mark.parametrize("past", [0, 1, 9])
@pytest.mark.parametrize("taps", [1, 2, 8, 40])
@pytest.mark.parametrize("time", [1, 2, 17, 32])
def test_outputs_and_gradients_follow_the_definition(time, taps, past, block):
    arguments = inputs(time, taps, past)
    y, want = long_conv(*arguments, block_size=block), definition(*arguments)
    torch.testing.assert_close(y, want, rtol=1e-11, atol=1e-11)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    for one, other in zip(
        torch.autograd.grad(y, arguments, cotangent),
        torch.autograd.grad(want, arguments, cotangent, materialize_grads=True, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    last = torch.cat((arguments[2], arguments[0][:, :-1]), 1)
    torch.testing.assert_close(long_conv_step(arguments[0][:, -1], arguments[1], last), want[:, -1])


def test_without_a_past_and_with_more_axes():
    x, kernel, past = inputs(11, 20, 0)
    want = definition(x, kernel, past)
    torch.testing.assert_close(long_conv(x, kernel), want)
    torch.testing.assert_close(long_conv(x[:, None].expand(2, 4, 11, 3), kernel), want[:, None].expand(2, 4, 11, 3))
    assert long_conv(x[:, :0], kernel).shape == (2, 0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision(dtype):
    x, kernel, _ = (t.detach() for t in inputs(2048, 2048, 0, dtype))
    y = long_conv(x, kernel)
    want = long_conv(x.double(), kernel.double())
    assert y.dtype == dtype
    assert (y - want).abs().max() < (2e-6 if dtype == torch.float32 else 4e-3) * want.abs().max()


@pytest.mark.parametrize("taps", [3, 300])
def test_nothing_comes_from_later(taps):
    """Not even round-off, which would be large beside a quiet token."""
    x, kernel, _ = (t.detach() for t in inputs(300, taps, 0, torch.float32))
    y = long_conv(x, kernel, block_size=16)
    for cut in (1, 16, 40, 64, 250):
        changed = torch.cat((x[:, :cut], 1e6 * x[:, cut:]), 1)
        assert torch.equal(long_conv(changed, kernel, block_size=16)[:, :cut], y[:, :cut])


def test_what_is_kept_is_what_the_kernel_still_reaches():
    x, _, past = (t.detach() for t in inputs(5, 1, 4))
    for taps in (2, 3, 6, 9, 20):
        kept = long_conv_inputs(x, taps, past)
        assert torch.equal(kept, torch.cat((past, x), 1)[:, -(taps - 1) :])
        assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()
    assert torch.equal(long_conv_inputs(x, 20), x)


def test_bad_input_is_named():
    x, kernel, past = inputs(4, 6, 2)
    with pytest.raises(ValueError, match=r"\(2, 4, 3\), \(2, 6\): must be \(..., T, D\), \(D, L\)"):
        long_conv(x, kernel[:2])
    with pytest.raises(ValueError, match="block_size = 0"):
        long_conv(x, kernel, block_size=0)
    with pytest.raises(ValueError, match=r"state has the shape \(2, 2, 2\): must be \(2, S, 3\)"):
        long_conv(x, kernel, past[..., 1:])
