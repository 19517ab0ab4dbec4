"""The selective scan against its definition, written out in float64."""

import itertools

import pytest
import torch

from zoology.kernels.selective_scan import blocks, pairs, reference, selective_scan, selective_scan_step


@pytest.fixture(params=[blocks, pairs], ids=["blocks", "pairs"], autouse=True)
def scans(request, monkeypatch):
    """Both ways through a chunk, whatever the device."""
    monkeypatch.setattr(reference, "_scans", lambda x: request.param)


def inputs(batch, time, channels, n, seed=0, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    shapes = ((batch, time, channels),) * 2 + ((channels, n),) + ((batch, time, n),) * 2 + ((channels,),)
    x, delta, a, b, c, d = (torch.randn(*s, generator=rng, dtype=torch.float64) for s in shapes)
    state = torch.randn(batch, channels, n, generator=rng, dtype=torch.float64)
    return tuple(t.requires_grad_() for t in (x, scale * delta.abs(), -a.abs(), b, c, d, state))


def definition(x, delta, a, b, c, d, h):
    rows = []
    for t in range(x.shape[1]):
        h = (delta[:, t, :, None] * a).exp() * h + (delta[:, t] * x[:, t])[..., None] * b[:, t, None]
        rows.append((h * c[:, t, None]).sum(-1) + d * x[:, t])
    return torch.stack(rows, 1), h


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3], ids=["keeps", "between", "forgets"])
@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
@pytest.mark.parametrize("time", [1, 2, 7, 37])
def test_outputs_and_gradients_follow_the_definition(time, chunk, scale):
    arguments = inputs(2, time, 3, 4, scale=scale)
    got = selective_scan(*arguments[:6], state=arguments[6], chunk_size=chunk)
    want = definition(*arguments)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    rng = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=rng, dtype=t.dtype) for t in want]
    for one, other in zip(
        torch.autograd.grad(got, arguments, cotangents), torch.autograd.grad(want, arguments, cotangents), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_without_skip_and_state():
    *arguments, d, _ = inputs(2, 9, 3, 4)
    y, _ = selective_scan(*arguments)
    nothing = torch.zeros(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(y, definition(*arguments, torch.zeros_like(d), nothing)[0])


def test_pieces_and_steps_give_what_the_whole_gives():
    *arguments, d, start = inputs(2, 21, 3, 4)
    x, delta, a, b, c = arguments
    whole, final = selective_scan(*arguments, d, state=start)
    for cuts in ((0, 1, 21), (0, 8, 8, 9, 21)):
        state, pieces = start, []
        for i, j in itertools.pairwise(cuts):
            y, state = selective_scan(x[:, i:j], delta[:, i:j], a, b[:, i:j], c[:, i:j], d, state=state, chunk_size=4)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
        torch.testing.assert_close(state, final)
    state = start
    for t in range(21):
        y, state = selective_scan_step(x[:, t], delta[:, t], a, b[:, t], c[:, t], d, state)
        torch.testing.assert_close(y, whole[:, t])
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("scale", [1e-6, 1e6], ids=["keeps", "forgets"])
def test_extreme_step_sizes_are_finite_in_float32(scale):
    arguments = [t.detach().float().requires_grad_() for t in inputs(1, 4096, 2, 3, scale=scale)]
    y, h = selective_scan(*arguments[:6], state=arguments[6])
    (y.square().mean() + h.square().mean()).backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(t.grad).all() for t in arguments)


def test_low_precision_sums_wide():
    arguments = [t.detach().bfloat16() for t in inputs(2, 300, 3, 4)]
    y, h = selective_scan(*arguments[:6], state=arguments[6])
    want, _ = definition(*(t.double() for t in arguments))
    assert (y.dtype, h.dtype) == (torch.bfloat16, torch.float32)
    assert (y.double() - want).abs().max() < 5e-3 * want.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = selective_scan(*(t.float() for t in arguments[:6]), state=arguments[6].float())[0]
    assert (narrow.double() - want).abs().max() < 1e-5 * want.abs().max()


def test_it_compiles_whole_under_vmap_too():
    stacked = [torch.stack([t.detach(), t.detach().flip(0)]) for t in inputs(2, 9, 3, 4)]

    def run(*tensors):
        y, h = selective_scan(*tensors[:6], state=tensors[6], chunk_size=4)
        return y.square().sum() + h.sum()

    apart = [torch.func.grad(run, argnums=tuple(range(7)))(*(t[i] for t in stacked)) for i in range(2)]
    together = torch.vmap(torch.func.grad(run, argnums=tuple(range(7))))(*stacked)
    for i in range(2):
        for one, other in zip(together, apart[i], strict=True):
            torch.testing.assert_close(one[i], other)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*(t[0] for t in stacked)), run(*(t[0] for t in stacked)))

    def losses(*tensors):
        return torch.vmap(run)(*tensors).sum()

    leaves = [t.requires_grad_() for t in stacked]
    both = torch.compile(losses, fullgraph=True, backend="aot_eager_decomp_partition")
    for one, other in zip(torch.autograd.grad(both(*leaves), leaves), together, strict=True):
        torch.testing.assert_close(one, other)


def test_bad_input_is_named():
    x, delta, a, b, c, d, state = inputs(2, 4, 5, 3)
    with pytest.raises(ValueError, match=r"\(2, 4, 5\), \(2, 3, 5\), .*must be \(B, T, E\)"):
        selective_scan(x, delta[:, 1:], a, b, c)
    with pytest.raises(ValueError, match="chunk_size = 0"):
        selective_scan(x, delta, a, b, c, chunk_size=0)
    with pytest.raises(ValueError, match=r"state has the shape \(2, 5, 2\): must be \(2, 5, 3\)"):
        selective_scan(x, delta, a, b, c, state=state[..., 1:])
    with pytest.raises(ValueError, match=r"must be \(B, E\)"):
        selective_scan_step(x, delta, a, b, c, d, state)
