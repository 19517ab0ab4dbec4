"""Linear attention's Triton kernels: interpreted on a CPU, and compiled: pytest -m gpu tests/kernels

On a GPU errors are against float64, and beside those of the reference in the same dtype on the same inputs.
"""

import pytest
import torch
from errors import error, no_worse
from interpreter import needs_triton, run

from zoology.kernels.linear_attention import linear_attention

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
RATIO, FLOOR = 1.3, {torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
"""Errors may be RATIO times the reference's, or FLOOR, that of a few roundings."""


@needs_triton
@pytest.mark.parametrize("file", ["interpreted_linear_attention.py", "interpreted_linear_attention_blocks.py"])
def test_the_kernels_in_the_interpreter(file):
    run(file)


def inputs(batch, time, heads, f, dv, dtype, feature_map="taylor", decay=None, seed=0):
    rng = torch.Generator("cuda").manual_seed(seed)
    q, k = (torch.randn(batch, time, heads, f, generator=rng, device="cuda") for _ in range(2))
    v = torch.randn(batch, time, heads, dv, generator=rng, device="cuda")
    if feature_map == "identity":
        q, k = q.abs(), k.abs()
    given = [x.to(dtype) for x in (q, k, v)]
    if decay is not None:
        shape = (heads,) if decay == "head" else (batch, time, heads)
        given.append(torch.rand(shape, generator=rng, device="cuda") * -0.2)
    return [x.requires_grad_() for x in given]


def op(q, k, v, log_decay=None, implementation="triton", cut=None, **settings):
    """The output; with a `cut`, of two pieces, the second from the state after the first."""
    settings["implementation"] = implementation
    if cut is None:
        return linear_attention(q, k, v, log_decay=log_decay, **settings)[0]
    outputs, state = [], None
    for piece in (slice(None, cut), slice(cut, None)):
        decay = log_decay if log_decay is None or log_decay.dim() == 1 else log_decay[:, piece]
        o, state = linear_attention(
            q[:, piece], k[:, piece], v[:, piece], log_decay=decay, state=state, output_state=True, **settings
        )
        outputs.append(o)
    return torch.cat(outputs, 1)


def results(given, cotangent, function=op, **settings):
    o = function(*given, **settings)
    return o.detach(), *torch.autograd.grad(o, given, cotangent.to(o.dtype))


SHAPES = [
    ((3, 33, 2, 5, 20), None),
    ((4, 64, 2, 16, 64), None),
    ((2, 257, 2, 24, 64), None),
    ((2, 2100, 2, 16, 64), None),
    ((4, 128, 1, 16, 128), None),
    ((2, 300, 1, 40, 150), None),
    ((2, 2048, 2, 16, 64), None),
    ((2, 900, 1, 24, 40), 700),
]
"""B, T, H, f, dv, and where it is cut."""
FUNCTIONS = [
    ("taylor", True, None),
    ("identity", True, "token"),
    ("taylor", False, "token"),
    ("identity", False, "head"),
]
"""Feature map, whether normalised, and decay. Other dtypes than bfloat16 take half of all: each compiles anew."""


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize(
    ("dtype", "shape", "cut", "feature_map", "normalise", "decay"),
    [
        *((torch.bfloat16, *shape, *function) for shape in SHAPES for function in FUNCTIONS),
        *((torch.float16, *shape, *function) for shape in SHAPES[:4] for function in FUNCTIONS[:2]),
        *((torch.float32, *shape, *function) for shape in SHAPES[:4] for function in FUNCTIONS[:2]),
    ],
    ids=str,
)
def test_it_errs_no_more_than_the_reference(shape, cut, feature_map, normalise, decay, dtype):
    given = inputs(*shape, dtype, feature_map, decay)
    cotangent = torch.randn(given[2].shape, device="cuda").to(dtype)
    settings = {"feature_map": feature_map, "normalise": normalise, "cut": cut}
    wide = [x.detach().double().requires_grad_() for x in given]
    want = results(wide, cotangent, implementation="reference", **settings)
    theirs = results(given, cotangent, implementation="reference", **settings)
    got = results(given, cotangent, **settings)
    for name, a, b, exact in zip(("o", "dq", "dk", "dv", "dg"), got, theirs, want, strict=False):
        floor = FLOOR[dtype] * (10 if name == "dg" else 1)  # a sum over all tokens, of either sign
        no_worse(a, b, exact, RATIO, floor, name)
    for again in range(3):
        assert all(torch.equal(a, b) for a, b in zip(got, results(given, cotangent, **settings), strict=True)), again


@pytest.mark.gpu
@GPU
@pytest.mark.usefixtures("memory_of_the_gpu")
def test_more_elements_than_32_bits_count():
    """B T H dv just over 2^31: the last sequence is as it is alone."""
    batch, time, heads, dv = 1026, 512, 32, 128
    q = torch.randn(1, time, heads, 4, device="cuda", dtype=torch.bfloat16).expand(batch, -1, -1, -1)
    v = torch.randn(1, time, heads, dv, device="cuda", dtype=torch.bfloat16).expand(batch, -1, -1, -1)
    assert batch * time * heads * dv > 2**31
    with torch.no_grad():
        far = op(q, q, v, feature_map="taylor")[-1:].clone()
        assert torch.equal(far, op(q[:1], q[:1], v[:1], feature_map="taylor"))


def mapped(q, k, v, g):
    """R models under autocast, as they are trained; q in float32 to be rounded there."""
    with torch.autocast("cuda", torch.bfloat16):
        return torch.func.vmap(lambda *x: op(*x, feature_map="taylor"))(q.float(), k, v, g)


def models(seed=0):
    return [
        x.detach().unflatten(0, (3, 2)).requires_grad_()
        for x in inputs(6, 70, 2, 8, 16, torch.bfloat16, decay="token", seed=seed)
    ]


@pytest.mark.gpu
@GPU
def test_it_compiles_whole():
    given = models()
    cotangent = torch.randn_like(given[2])
    want = results(given, cotangent, mapped)
    got = results(given, cotangent, torch.compile(mapped, fullgraph=True))
    for a, b in zip(got, want, strict=True):
        assert error(a, b.double()) < 1e-2


@pytest.mark.gpu
@GPU
def test_a_captured_graph_replays_on_new_inputs():
    given = models()
    cotangent = torch.randn_like(given[2])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            results(given, cotangent, mapped)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = results(given, cotangent, mapped)
    for seed in (1, 2):
        new = models(seed)
        with torch.no_grad():
            for old, x in zip(given, new, strict=True):
                old.copy_(x)
            for x in outputs:
                x.fill_(torch.nan)
        graph.replay()
        for a, b in zip(outputs, results(new, cotangent, mapped), strict=True):
            assert torch.equal(a, b)
