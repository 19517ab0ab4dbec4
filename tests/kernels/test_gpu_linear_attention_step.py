"""The Triton kernel of `linear_attention_step` on a GPU: pytest -m gpu tests/kernels/test_gpu_linear_attention_step.py

Errors are against float64, and beside those of the reference in the same dtypes on the same inputs.
"""

import pytest
import torch
from errors import no_worse

from zoology.kernels.linear_attention import LinearAttentionState, linear_attention_step, taylor_features

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RATIO, FLOOR = 1.2, {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
"""Errors may be RATIO times the reference's, or FLOOR, that of one rounding."""


def inputs(batch, heads, f, dv, dtype=torch.float32, state_dtype=torch.float32, feature_map="taylor", seed=0):
    """q, k, v, a state of a hundred tokens, and a decay of each head."""
    rng = torch.Generator("cuda").manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=rng, device="cuda")

    q, k, v = (draw(batch, heads, n).to(dtype) for n in (f, f, dv))
    width = taylor_features(q).shape[-1] if feature_map == "taylor" else f
    kv, normaliser = 100 * draw(batch, heads, width, dv), 100 * draw(batch, heads, width)
    return q, k, v, kv.to(state_dtype), normaliser.to(state_dtype), -draw(batch, heads)


def results(q, k, v, kv, normaliser, decay, implementation, **options):
    o, after = linear_attention_step(
        q, k, v, LinearAttentionState(kv, normaliser), log_decay=decay, implementation=implementation, **options
    )
    return o, *after


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("feature_map", "batch", "heads", "f", "dv"),
    [
        ("taylor", 128, 28, 16, 64),
        ("taylor", 1, 3, 7, 33),
        ("taylor", 300, 2, 8, 128),
        ("identity", 16, 4, 64, 64),
        ("identity", 200, 4, 1, 1),
        ("identity", 3, 2, 130, 300),
    ],
    ids=str,
)
@torch.no_grad()
def test_it_errs_no_more_than_the_reference(feature_map, batch, heads, f, dv, dtype, state_dtype):
    arguments = inputs(batch, heads, f, dv, dtype, state_dtype, feature_map)
    for normalise, decay in ((True, arguments[5]), (False, None)):
        options = {"feature_map": feature_map, "normalise": normalise}
        exact = [x.double() for x in arguments[:5]], None if decay is None else decay.double()
        want = results(*exact[0], exact[1], "reference", **options)
        theirs, ours = (results(*arguments[:5], decay, name, **options) for name in ("reference", "triton"))
        assert [x.dtype for x in ours] == [dtype, state_dtype, state_dtype]
        for a, b, wanted in zip(ours, theirs, want, strict=True):
            no_worse(a, b, wanted, RATIO, FLOOR[a.dtype])


@torch.no_grad()
@pytest.mark.usefixtures("memory_of_the_gpu")
def test_more_elements_than_32_bits_count():
    """B H F dv beyond 2^31: the last rows are those of a call of their own."""
    arguments = inputs(2, 2**9, 16, 64, torch.bfloat16, torch.bfloat16)
    many = [x.repeat(220, *[1] * (x.dim() - 1)) for x in arguments]
    assert many[3].numel() > 2**31
    far, near = (results(*given, "triton", feature_map="taylor") for given in (many, arguments))
    for a, b in zip(far, near, strict=True):
        assert torch.equal(a[-2:], b)


def test_the_device_chooses_and_gradients_are_the_references():
    arguments = inputs(2, 2, 4, 8)
    arguments[0].requires_grad_()
    o, *_ = results(*arguments, None, feature_map="taylor")
    want, *_ = results(*arguments, "reference", feature_map="taylor")
    (a,), (b,) = (torch.autograd.grad(x.sum(), arguments[0]) for x in (o, want))
    assert torch.equal(a, b)
    with torch.no_grad():
        ours, chosen = (results(*arguments, name, feature_map="taylor") for name in ("triton", None))
    for a, b in zip(ours, chosen, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_it_compiles_whole_and_under_vmap():
    models = [inputs(4, 3, 8, 32, torch.bfloat16, seed=seed) for seed in range(3)]
    stacked = [torch.stack(x) for x in zip(*models, strict=True)]

    def one(*args):
        o, kv, normaliser = results(*args, None, feature_map="taylor")
        return torch.nn.functional.silu(o), kv, normaliser

    def all_models(*args):
        return torch.func.vmap(one)(*args)

    loop = [torch.stack(x) for x in zip(*(one(*model) for model in models), strict=True)]
    for function in (all_models, torch.compile(all_models, fullgraph=True)):
        for a, b in zip(function(*stacked), loop, strict=True):
            torch.testing.assert_close(a, b)


@torch.no_grad()
def test_a_captured_graph_replays_on_new_inputs():
    arguments = inputs(4, 3, 8, 32)
    results(*arguments, "triton", feature_map="taylor")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = results(*arguments, "triton", feature_map="taylor")
    new = inputs(4, 3, 8, 32, seed=1)
    for old, x in zip(arguments, new, strict=True):
        old.copy_(x)
    for x in outputs:
        x.fill_(torch.nan)
    graph.replay()
    for a, b in zip(outputs, results(*new, "triton", feature_map="taylor"), strict=True):
        assert torch.equal(a, b)
