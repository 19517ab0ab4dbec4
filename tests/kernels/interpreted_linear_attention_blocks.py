"""Blocks, states and the order of features in the Triton kernels of `linear_attention`, in the interpreter, float32
against float64. The op's tests run them."""

import pytest
import torch
from interpreted_linear_attention import CASES, exact, inputs, near, results

from zoology.kernels.linear_attention import LinearAttentionState, launch, linear_attention, taylor_features, triton

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")


@CASES
def test_blocks_that_are_all_full(feature_map, normalise, decay):
    """Where nothing is masked but what is later, and states lie within a tile or not."""
    for f in (5, 16):
        given = inputs(1, 64, 1, f, 16, feature_map, decay)
        settings = {"feature_map": feature_map, "normalise": normalise, "chunk_size": 32}
        assert launch.Problem(*given[:3], None, launch.Options(True, True, 1e-6, 32)).even(32)
        # A head's one decay has a gradient that is a sum over all tokens, of either sign.
        near(results(given, **settings), exact(given, **settings), 1e-4 if decay == "head" else 3e-6)


@pytest.mark.parametrize("saved", [True, False])
def test_states_are_kept_for_the_backward_pass_or_made_again(saved, monkeypatch):
    assert triton.saves(16, 64, True, 256)
    assert not triton.saves(64, 64, True, 128)
    given = inputs(1, 50, 2, 5, 6, decay="token")
    settings = {"feature_map": "taylor", "chunk_size": 16}
    want = exact(given, **settings)
    monkeypatch.setattr(triton, "saves", lambda *_: saved)
    near(results(given, **settings), want)


@pytest.mark.parametrize("f", [1, 2, 3, 5, 8, 12])
def test_every_feature_has_one_place(f):
    """The kernels' order of features and `taylor_features`' hold the same, each once, and nothing else."""
    x, w = torch.randn(1, 1, 1, f), torch.eye(launch.width(f, True))
    kv = w.unsqueeze(0).unsqueeze(0)  # a state that gives each feature back as a value of its own
    o, _ = linear_attention(
        x, torch.zeros_like(x), torch.zeros(1, 1, 1, w.shape[0]), feature_map="taylor", normalise=False,
        state=LinearAttentionState(kv, torch.zeros(1, 1, 0)), implementation="triton",
    )  # fmt: skip
    near([o], [taylor_features(x)])
