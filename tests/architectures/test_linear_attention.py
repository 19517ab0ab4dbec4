import math

import pytest
import torch
import torch.nn.functional as F
from mixer_checks import assert_continues, assert_follows, assert_stacks, shaken

from zoology.architectures.base import build_mixer, get_architecture
from zoology.architectures.config import dials
from zoology.architectures.feature_maps import FEATURE_MAPS, orthogonal_features
from zoology.architectures.state import leaves, measure, total
from zoology.registry import InputError

MAPS = list(FEATURE_MAPS)


def make(feature_map, d_model=12, f=5, heads=1, **settings):
    torch.manual_seed(0)
    settings |= {"feature_dim": f, "num_heads": heads, "feature_map": feature_map}
    return build_mixer("linear-attention", d_model, settings)


def weights(mixer, q, k):
    """w(q_t, k_s), (batch, heads, time, time), from each paper's formula; q, k (batch, time, heads, f)."""
    f, time, phi = q.shape[-1], q.shape[1], mixer.feature_map
    scores = torch.einsum("bthf,bshf->bhts", q, k)
    match next(name for name, cls in FEATURE_MAPS.items() if type(phi) is cls):
        case "taylor":
            return 1 + scores / math.sqrt(f) + scores**2 / f / 2
        case "elu":
            q, k = F.elu(q) + 1, F.elu(k) + 1
        case "relu":
            q, k = q.clamp_min(0), k.clamp_min(0)
        case "identity":
            return scores / math.sqrt(f)
        case "hedgehog":
            q, k = (
                torch.stack([w[h] @ x[:, :, h].mT for h in range(len(w))], 1).permute(0, 3, 1, 2)
                for x, w in ((q, phi.q_weight), (k, phi.k_weight))
            )
            q, k = (torch.cat((x.softmax(-1), (-x).softmax(-1)), -1) for x in (q, k))
        case "cosformer":
            distance = (torch.arange(time)[:, None] - torch.arange(time)).double()
            near = torch.cos(math.pi / 2 * distance / phi.max_length)
            return torch.einsum("bthf,bshf->bhts", q.clamp_min(0), k.clamp_min(0)) * near
        case "performer":
            # As published, but for its key stabiliser; a factor of the query changes nothing.
            w, eps = phi.projection, phi.EPS
            q, k = q / f**0.25, k / f**0.25
            q = (q @ w.T - (q @ w.T).detach().amax(-1, keepdim=True)).exp() + eps
            k = (k @ w.T - k.square().sum(-1, keepdim=True) / 2).exp() + eps
        case "dpfp":
            q, k = (torch.cat((x.clamp_min(0), (-x).clamp_min(0)), -1) for x in (q, k))
            q, k = (x * torch.cat((x[..., -1:], x[..., :-1]), -1) for x in (q, k))
        case "rebased":
            q, k = (x - x.mean(-1, keepdim=True) for x in (q, k))
            q, k = (x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * phi.gamma + phi.beta for x in (q, k))
            return torch.einsum("bthf,bshf->bhts", q, k) ** 2 / f / 2
    return torch.einsum("bthf,bshf->bhts", q, k)


def definition(mixer, x):
    batch, time, width = x.shape
    heads, f = mixer.num_heads, mixer.feature_dim
    q, k = ((x @ p.weight.T).view(batch, time, heads, f) for p in (mixer.q_proj, mixer.k_proj))
    v = (x @ mixer.v_proj.weight.T).view(batch, time, heads, width // heads)
    w = weights(mixer, q, k) * (torch.arange(time)[:, None] >= torch.arange(time))
    o = torch.einsum("bhts,bshd->bhtd", w, v)
    if mixer.norm is None:
        o = o / (w.sum(-1, keepdim=True) + 1e-6)
    else:
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    return o.transpose(1, 2).reshape(batch, time, width) @ mixer.out_proj.weight.T


@pytest.mark.parametrize("feature_map", MAPS)
@pytest.mark.parametrize(("time", "heads"), [(1, 1), (17, 3), (270, 2)])
def test_outputs_and_gradients_follow_the_definition(time, heads, feature_map):
    mixer = shaken(make(feature_map, heads=heads).double())
    assert_follows(mixer, definition, torch.randn(2, time, 12, dtype=torch.float64), rtol=1e-7)


@pytest.mark.parametrize("feature_map", MAPS)
def test_pieces_and_steps_give_what_the_whole_gives(feature_map):
    mixer = shaken(make(feature_map, 8, 4, 2, max_length=9).double())
    assert_continues(mixer, torch.randn(2, 15, 8, dtype=torch.float64))
    assert_stacks("linear-attention", 8, {"feature_dim": 4, "num_heads": 2, "feature_map": feature_map})


@pytest.mark.parametrize("feature_map", MAPS)
def test_a_long_sequence_of_large_inputs_in_float32(feature_map):
    mixer = make(feature_map, 8, 4, 2)
    x = torch.randn(1, 4096, 8) * torch.tensor([1.0, 30.0]).repeat(2048)[:, None]
    x.requires_grad_()
    y = mixer(x)
    y.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in (x, *mixer.parameters()))
    want = mixer.double()(x.double())
    assert (y - want).abs().max() < 1e-3 * want.abs().max()


@pytest.mark.parametrize("feature_map", MAPS)
def test_state_is_the_two_sums(feature_map):
    width = {
        "taylor": 15,
        "elu": 4,
        "relu": 4,
        "identity": 4,
        "hedgehog": 8,
        "cosformer": 8,
        "performer": 6,  # 4 log 4 = 5.5
        "dpfp": 8,
        "rebased": 10,
    }[feature_map]
    mixer = make(feature_map, 12, 4, 2)
    _, state = mixer.prefill(torch.randn(1, 7, 12), mixer.init_state(1))
    elements, _ = total(measure(state))
    assert elements == 2 * (6 + (feature_map != "identity")) * width + (feature_map == "cosformer")
    assert {t.dtype for path, t in leaves(state) if path != ("position",)} == {torch.float32}
    assert {t.dtype for _, t in leaves(mixer.bfloat16().init_state(1)) if t.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("feature_map", sorted(set(MAPS) - {"identity", "relu", "cosformer", "dpfp"}))
def test_constant_values_come_out_as_they_went_in(feature_map):
    """The weights are normalised: they sum to 1 whatever they are. (ReLUs may all be 0, and then nothing comes out.)"""
    mixer = make(feature_map, 8, 3).double()
    with torch.no_grad():
        mixer.v_proj.weight.zero_()
        mixer.v_proj.weight[:, 0] = 1.0
        mixer.out_proj.weight.copy_(torch.eye(8))
        x = torch.randn(1, 20, 8, dtype=torch.float64)
        x[..., 0] = 2.5
        torch.testing.assert_close(mixer(x), torch.full_like(x, 2.5), rtol=1e-4, atol=1e-4)


def test_dials_and_bad_settings():
    assert dials(get_architecture("linear-attention").Config) == {"feature_dim": (4, 8, 16)}
    with pytest.raises(InputError, match=r"feature_map = 'tailor'.*'taylor', 'elu'.* or 'rebased'"):
        build_mixer("linear-attention", 8, {"feature_map": "tailor"})
    with pytest.raises(InputError, match=r"feature_dim = 1: feature_map rebased .* at least 2"):
        build_mixer("linear-attention", 8, {"feature_map": "rebased", "feature_dim": 1})
    for bad in (0, -3, "abc"):
        with pytest.raises(InputError, match=f"linear-attention: feature_dim = {bad!r}"):
            build_mixer("linear-attention", 8, {"feature_dim": bad})
    with pytest.raises(InputError, match="max_length = 0"):
        build_mixer("linear-attention", 8, {"max_length": 0})


def test_random_features_are_orthogonal_and_as_long_as_gaussian_vectors():
    torch.manual_seed(0)
    w = orthogonal_features(10, 4)
    for rows in (w[:4], w[4:8], w[8:]):
        gram = rows @ rows.T
        assert (gram - gram.diagonal().diag()).abs().max() < 1e-5
    many = torch.stack([orthogonal_features(4, 4) for _ in range(4000)])
    assert abs(many.square().sum(-1).mean() - 4) < 0.1
    assert many.mean(0).abs().max() < 0.07  # uniform in direction; LAPACK's own signs are not
    assert orthogonal_features(3, 1).shape == (3, 1)


def test_random_features_estimate_the_softmax():
    """Performer, lemma 1: the estimate is unbiased, so many features give the weights of softmax attention."""
    mixer = make("performer", 6, 6, num_features=100_000).double()
    q, k = (0.5 * torch.randn(9, 1, 6, dtype=torch.float64) for _ in range(2))
    phi_q, phi_k = (phi.squeeze(1) for phi in mixer.feature_map(q, k))
    w = phi_q @ phi_k.T
    want = (q.squeeze(1) @ k.squeeze(1).T / math.sqrt(6)).softmax(-1)
    torch.testing.assert_close(w / w.sum(-1, keepdim=True), want, rtol=0.05, atol=0.0)


def test_random_features_of_wide_heads_stay_finite():
    """f = 200: |w|^2 / 2 is about 100, and exp(100) no float32."""
    mixer = make("performer", 8, 200)
    w = mixer.feature_map.projection
    x = w[w.norm(dim=-1).argmax()].view(1, 1, -1) * 200**0.25  # the key at which a feature is largest
    phi_q, phi_k = mixer.feature_map(x, x)
    assert torch.isfinite(phi_k).all()
    torch.testing.assert_close(phi_k.max().log(), torch.tensor(40.0), rtol=1e-3, atol=0)
    assert phi_q.max() < 1.01


def test_random_features_are_drawn_once_from_the_seed():
    a, b = make("performer"), make("performer")
    assert torch.equal(a.feature_map.projection, b.feature_map.projection)
    assert "feature_map.projection" in a.state_dict()
    assert "feature_map.projection" not in dict(a.named_parameters())


def test_hedgehog_starts_at_the_identity():
    x = torch.randn(3, 2, 5)
    phi, _ = make("hedgehog", heads=2).feature_map(x, x)
    torch.testing.assert_close(phi, torch.cat((x.softmax(-1), (-x).softmax(-1)), -1))


def test_the_cosine_stands_still_beyond_its_length():
    """Weights of one key fall from 1 at no distance to 0 at M tokens, and stay at 0; none is negative."""
    phi = make("cosformer", f=1, max_length=8).feature_map
    one = torch.ones(30, 1, 1, dtype=torch.float64)
    q, k = phi(one, one, torch.arange(1, 31))
    w = (q @ k[0].mT).squeeze()
    times = torch.arange(8, dtype=torch.float64)
    torch.testing.assert_close(w[:8], torch.cos(math.pi / 2 * times / 8))
    assert (w[7:] == w[7]).all()
    assert (q.squeeze(1) @ k.squeeze(1).T >= 0).all()
