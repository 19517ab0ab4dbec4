"""The Triton kernel of `linear_attention_step` in the interpreter, float32 against float64. The step's tests run it."""

import pytest
import torch
from errors import near

from zoology.kernels.linear_attention import LinearAttentionState, linear_attention_step, taylor_features, triton_step

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

IMPLEMENTATION = {"implementation": "triton"}


def inputs(batch, heads, f, dv, feature_map="taylor", decay=None, seed=0):
    """q, k, v, the state after three tokens, so that its normaliser is positive, and the decay or None."""
    rng = torch.Generator().manual_seed(seed)
    q, k = (torch.rand(batch, heads, f, generator=rng) for _ in range(2))
    v = torch.randn(batch, heads, dv, generator=rng)
    keys, values = torch.rand(3, batch, heads, f, generator=rng), torch.randn(3, batch, heads, dv, generator=rng)
    phi = taylor_features(keys) if feature_map == "taylor" else keys
    state = LinearAttentionState((phi.unsqueeze(-1) * values.unsqueeze(-2)).sum(0), phi.sum(0))
    shape = {None: None, "head": (heads,), "token": (batch, heads)}[decay]
    return q, k, v, state, None if shape is None else -torch.rand(shape, generator=rng)


def wide(x):
    return None if x is None else x.double()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("decay", [None, "head", "token"])
@pytest.mark.parametrize("feature_map", ["taylor", "identity"])
@pytest.mark.parametrize(
    ("batch", "heads", "f", "dv"), [(1, 1, 1, 1), (2, 3, 4, 20), (2, 1, 5, 70), (0, 2, 4, 8), (1, 2, 16, 64)], ids=str
)
def test_outputs_and_state(batch, heads, f, dv, feature_map, decay, normalise):
    q, k, v, state, log_decay = inputs(batch, heads, f, dv, feature_map, decay)
    options = {"feature_map": feature_map, "normalise": normalise}
    kept = [x.clone() for x in state]
    o, after = linear_attention_step(q, k, v, state, log_decay=log_decay, **options, **IMPLEMENTATION)
    exact = LinearAttentionState(*(x.double() for x in state))
    want, expected = linear_attention_step(
        q.double(), k.double(), v.double(), exact, log_decay=wide(log_decay), **options, implementation="reference"
    )
    near(o, want)
    for got, wanted, given, before in zip(after, expected, state, kept, strict=True):
        near(got, wanted)
        assert torch.equal(given, before)  # what was given is as it was


def test_every_block_size_gives_the_same():
    q, k, v, state, log_decay = inputs(2, 2, 7, 50, decay="token")
    given = (q, k, v, *state, log_decay, True, 1e-6)
    want = triton_step.step(*given)
    for features, values in ((16, 16), (64, 64), (8, 32)):
        for a, b in zip(triton_step.launch(*given, triton_step.Blocks(features, values, 4)), want, strict=True):
            near(a, b)


def test_any_layout():
    q, k, v, state, log_decay = inputs(3, 2, 6, 10, decay="token")
    want = linear_attention_step(q, k, v, state, feature_map="taylor", log_decay=log_decay, **IMPLEMENTATION)
    together = torch.cat((q, k, v), dim=-1)
    q, k, v = together[..., :6], together[..., 6:12], together[..., 12:]
    log_decay = log_decay.T.contiguous().T
    state = LinearAttentionState(state.kv.mT.contiguous().mT, state.normaliser.mT.contiguous().mT)
    got = linear_attention_step(
        q, k, v.mT.contiguous().mT, state, feature_map="taylor", log_decay=log_decay, **IMPLEMENTATION
    )
    for a, b in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_no_normaliser_stays_without():
    q, k, v, state, log_decay = inputs(2, 2, 4, 6, "identity", "head")
    state = LinearAttentionState.of_sum(state.kv)
    _, after = linear_attention_step(q, k, v, state, normalise=False, log_decay=log_decay, **IMPLEMENTATION)
    assert after.normaliser.shape == (2, 2, 0)


@pytest.mark.parametrize("dims", [(0, 0, 0, 0, 0), (0, 0, 0, None, None), (None, None, 1, 0, None)], ids=str)
def test_vmap_is_a_loop(dims):
    models = [inputs(2, 3, 4, 6, decay="head", seed=seed) for seed in range(3)]
    flat = [(q, k, v, *state, g) for q, k, v, state, g in models]
    where = (*dims[:3], dims[3], dims[3], dims[4])
    stacked = [
        x[0] if dim is None else torch.stack(x, dim) for x, dim in zip(zip(*flat, strict=True), where, strict=True)
    ]

    def op(q, k, v, kv, normaliser, g):
        state = LinearAttentionState(kv, normaliser)
        o, after = linear_attention_step(q, k, v, state, feature_map="taylor", log_decay=g, **IMPLEMENTATION)
        return o, *after

    got = torch.func.vmap(op, in_dims=where)(*stacked)
    parts = [[x] * 3 if dim is None else x.unbind(dim) for x, dim in zip(stacked, where, strict=True)]
    loop = [torch.stack(x) for x in zip(*(op(*args) for args in zip(*parts, strict=True)), strict=True)]
    for a, b in zip(got, loop, strict=True):
        assert torch.equal(a, b)


def test_it_compiles_whole():
    q, k, v, state, _ = inputs(2, 3, 4, 6)

    def three(q, k, v, state):
        outputs = []
        for _ in range(3):
            o, state = linear_attention_step(q, k, v, state, feature_map="taylor", **IMPLEMENTATION)
            outputs.append(o)
        return torch.stack(outputs), *state

    for a, b in zip(
        three(q, k, v, state), torch.compile(three, fullgraph=True, backend="aot_eager")(q, k, v, state), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bare", [True, False])
def test_the_op_holds_what_torch_asks_of_it(bare):
    q, k, v, state, log_decay = inputs(2, 3, 4, 6, decay="token")
    given = (q, k, v, state.kv, *((None, None) if bare else (state.normaliser, log_decay)), True, 1e-6)
    torch.library.opcheck(triton_step.step, given, test_utils=("test_schema", "test_faketensor"))


def test_a_gradient_is_refused():
    q, k, v, state, _ = inputs(2, 3, 4, 6)
    o, _ = linear_attention_step(q.requires_grad_(), k, v, state, feature_map="taylor", **IMPLEMENTATION)
    with pytest.raises(RuntimeError, match="no gradient in Triton: use implementation='reference'"):
        o.sum().backward()


def test_limits_are_named():
    q, k, v, state, _ = inputs(2, 3, 4, 6, "identity")
    for place, name in enumerate("qkv"):
        given = [q, k, v]
        given[place] = given[place].double()
        with pytest.raises(ValueError, match=rf"{name} is torch\.float64: the Triton kernel takes"):
            linear_attention_step(*given, state, **IMPLEMENTATION)
    with pytest.raises(ValueError, match=r"kv is torch\.float64"):
        linear_attention_step(q, k, v, LinearAttentionState(state.kv.double(), state.normaliser), **IMPLEMENTATION)
    big = LinearAttentionState(state.kv[..., :1].expand(2, 3, 4, 2**22), state.normaliser)
    with pytest.raises(ValueError, match=r"F dv = 16777216: the Triton kernel takes f >= 1, F dv < 2\^24"):
        linear_attention_step(q, k, v[..., :1].expand(2, 3, 2**22), big, **IMPLEMENTATION)
    many = [x[:1, :1, :1].expand(2**20, 2**9, n) for x, n in ((q, 1), (k, 1), (v, 2))]
    state = LinearAttentionState(state.kv[:1, :1, :1, :1].expand(2**20, 2**9, 1, 2), many[0])
    with pytest.raises(ValueError, match=r"B H dv = 1073741824: the Triton kernel takes less than 2\^30"):
        linear_attention_step(*many, state, **IMPLEMENTATION)
