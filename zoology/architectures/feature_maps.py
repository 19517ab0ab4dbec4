"""Feature maps of linear attention: what stands for the exponential, w(q, k) = phi(q) . phi(k).

Each map takes the queries and keys of all heads, (..., H, f), and gives their features, (..., H, width), computed in
the inputs' dtype unless it says otherwise.

Letters: H num_heads, f feature_dim (the width of one head's queries and keys), m random features.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoology.kernels.linear_attention import taylor_features
from zoology.registry import InputError


class FeatureMap(nn.Module):
    """phi for queries and for keys. Subclasses set `width` and write `forward`.

    normalise: whether outputs are divided by the sum of the weights. Where weights can be negative, it can vanish.
    positional: whether phi depends on the token's position, which the mixer then keeps.
    """

    normalise: ClassVar[bool] = True
    positional: ClassVar[bool] = False

    def __init__(self, num_heads: int, feature_dim: int):
        super().__init__()
        self.width = feature_dim

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q, k (..., H, f) -> phi(q), phi(k) (..., H, width). positions: (...), from 1, where `positional`."""
        raise NotImplementedError


class Taylor(FeatureMap):
    """w = 1 + s + s^2 / 2 with s = q . k / sqrt(f): the beginning of exp(s). Source: Based, arXiv:2402.18668.

    The kernel makes these features itself, and only where it needs them, so q and k pass through.
    """

    def __init__(self, num_heads: int, feature_dim: int):
        super().__init__(num_heads, feature_dim)
        self.width = (feature_dim + 1) * (feature_dim + 2) // 2

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return q, k


class Elu(FeatureMap):
    """phi(x) = elu(x) + 1. Source: Katharopoulos et al., arXiv:2006.16236."""

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # relu(x) + exp(min(x, 0)) is the same, but in float32 no 0 below x = -17
        return F.relu(q) + q.clamp(max=0).exp(), F.relu(k) + k.clamp(max=0).exp()


class Relu(FeatureMap):
    """phi(x) = relu(x). Source: T2R, arXiv:2103.13076.

    T2R puts a learned linear map before the ReLU, as it starts from a trained attention layer; here the projections to
    q and k are that map.
    """

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.relu(q), F.relu(k)


class Identity(FeatureMap):
    """phi(x) = x, so w = q . k / sqrt(f), of either sign: the sum of the weights is no normaliser.

    As in RetNet (arXiv:2307.08621), TransNormer (arXiv:2210.10340) and fla's LinearAttention, each head's output is
    divided by its root mean square instead.
    """

    normalise = False

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return q * q.shape[-1] ** -0.5, k


class Hedgehog(FeatureMap):
    """phi(x) = [softmax(W x), softmax(-W x)], W learned for each head, apart for q and k, and the identity at first.

    Source: Hedgehog, arXiv:2402.04347, in the form of its authors' later code (LoLCATs), with one softmax for either
    sign. The softmaxes are taken in float32 or better.
    """

    def __init__(self, num_heads: int, feature_dim: int):
        super().__init__(num_heads, feature_dim)
        self.width = 2 * feature_dim
        start = torch.eye(feature_dim).expand(num_heads, -1, -1)
        self.q_weight, self.k_weight = (nn.Parameter(start.clone()) for _ in range(2))

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _hedgehog(q, self.q_weight), _hedgehog(k, self.k_weight)


class Cosformer(FeatureMap):
    """w = relu(q_i) . relu(k_j) cos(pi / 2 (i - j) / M): near tokens weigh more. Source: cosFormer, arXiv:2202.08791.

    phi(x_i) = [relu(x_i) sin(a_i), relu(x_i) cos(a_i)] with a_i = pi / 2 min(i, M) / M, i = 1, 2, ...

    The public code has the sequence's own length for M, which no model that runs token by token can know; here M is
    fixed, as the paper allows of any M that is not below the length. Beyond M tokens the angle stands still, so that no
    weight turns negative.
    """

    positional = True

    def __init__(self, num_heads: int, feature_dim: int, max_length: int = 1024):
        super().__init__(num_heads, feature_dim)
        self.width = 2 * feature_dim
        self.max_length = max_length

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert positions is not None
        # In float64, as (M - 1) / M must not be rounded in low precision; there is one angle a token.
        angle = positions.clamp(max=self.max_length).double() * (math.pi / 2 / self.max_length)
        sin, cos = (wave.to(q.dtype)[..., None, None] for wave in (angle.sin(), angle.cos()))
        q, k = F.relu(q), F.relu(k)
        return torch.cat((q * sin, q * cos), dim=-1), torch.cat((k * sin, k * cos), dim=-1)


class Performer(FeatureMap):
    """Positive orthogonal random features (FAVOR+): E[phi(q) . phi(k)] = exp(q . k / sqrt(f)), up to a factor of q's.

        phi_r(x) = exp(w_r . x' - |x'|^2 / 2) + eps,    x' = x f^(-1/4),    r = 1, ..., m

    Source: Performer, arXiv:2009.14794

    The w_r are rows of random orthogonal matrices, each as long as a Gaussian vector: drawn when the module is built,
    from torch's global generator, the same for all heads, kept as a buffer, and not drawn again in training. The factor
    m^(-1/2) is left out, as it cancels in the normalised output.

    So does any factor of a query: its exponent is taken relative to the largest of its m, without |q'|^2 / 2. A key's
    factor does not cancel, and the public code's, the largest exponent of all keys, sees later ones. It is not needed:
    w . x - |x|^2 / 2 <= |w|^2 / 2, a constant of the layer, and that is taken off only where it could overflow. So the
    state keeps no running maximum. Computed in float32 or better.
    """

    EPS: ClassVar[float] = 1e-6
    LARGEST: ClassVar[float] = 40.0
    """Largest exponent: sums of many thousand exp(40), times those of a query, stay within float32."""

    projection: Tensor

    def __init__(self, num_heads: int, feature_dim: int, num_features: int = 0):
        super().__init__(num_heads, feature_dim)
        self.width = num_features or max(1, round(feature_dim * math.log(feature_dim)))
        self.register_buffer("projection", orthogonal_features(self.width, feature_dim))

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        w = self.projection.to(wide)
        q, k = (x.to(wide) * x.shape[-1] ** -0.25 for x in (q, k))
        over_q, over_k = q @ w.T, k @ w.T - k.square().sum(-1, keepdim=True) / 2
        over_q = over_q - over_q.detach().amax(-1, keepdim=True)
        over_k = over_k - (w.square().sum(-1).amax() / 2 - self.LARGEST).clamp_min(0)
        return over_q.exp() + self.EPS, over_k.exp() + self.EPS


class Dpfp(FeatureMap):
    """phi(x) = r * roll(r, 1) with r = [relu(x), relu(-x)]: products of neighbours, most of them 0.

    Source: Linear transformers are secretly fast weight programmers, arXiv:2102.11174, with its nu = 1
    """

    def __init__(self, num_heads: int, feature_dim: int):
        super().__init__(num_heads, feature_dim)
        self.width = 2 * feature_dim

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k = (F.relu(torch.cat((x, -x), dim=-1)) for x in (q, k))
        return q * q.roll(1, -1), k * k.roll(1, -1)


class Rebased(FeatureMap):
    """w = (q' . k')^2 with x' = gamma norm(x) + beta, norm a LayerNorm over f, gamma and beta learned.

    Source: ReBased, arXiv:2402.10644; gamma and beta are those of queries and keys alike, as in fla

    The f^2 products are symmetric; each pair is held once: width f (f + 1) / 2.
    """

    def __init__(self, num_heads: int, feature_dim: int):
        super().__init__(num_heads, feature_dim)
        self.width = feature_dim * (feature_dim + 1) // 2
        self.gamma = nn.Parameter(torch.ones(feature_dim))
        self.beta = nn.Parameter(torch.zeros(feature_dim))

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._features(q), self._features(k)

    def _features(self, x: Tensor) -> Tensor:
        f = x.shape[-1]
        return taylor_features(F.layer_norm(x, (f,), self.gamma, self.beta))[..., f + 1 :]  # its terms of second order


FEATURE_MAPS: dict[str, type[FeatureMap]] = {
    "taylor": Taylor,
    "elu": Elu,
    "relu": Relu,
    "identity": Identity,
    "hedgehog": Hedgehog,
    "cosformer": Cosformer,
    "performer": Performer,
    "dpfp": Dpfp,
    "rebased": Rebased,
}


def build_feature_map(
    name: str, num_heads: int, feature_dim: int, max_length: int = 1024, num_features: int = 0
) -> FeatureMap:
    """A feature map by its name.

    Args:
        name: a key of `FEATURE_MAPS`.
        num_heads, feature_dim: of the queries and keys.
        max_length: cosformer's M.
        num_features: performer's m; 0 for f log f, rounded.

    Raises:
        InputError: the map needs a wider feature_dim.
    """
    if name == "rebased" and feature_dim < 2:
        raise InputError("feature_dim = 1: feature_map rebased normalises over it and needs at least 2")
    if name == "cosformer":
        return Cosformer(num_heads, feature_dim, max_length)
    if name == "performer":
        return Performer(num_heads, feature_dim, num_features)
    return FEATURE_MAPS[name](num_heads, feature_dim)


def orthogonal_features(m: int, f: int) -> Tensor:
    """(m, f): rows of uniformly random orthogonal (f, f) matrices, each times the length of a Gaussian vector.

    Each row is Gaussian, as random features need; those of one matrix are orthogonal, which lowers the variance.
    """
    q, r = torch.linalg.qr(torch.randn(-(-m // f), f, f))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)  # without them Q is not uniform
    rows = (q * signs.unsqueeze(-2)).mT.flatten(0, 1)[:m]
    return rows * torch.randn(m, f).norm(dim=-1, keepdim=True)


def _hedgehog(x: Tensor, weight: Tensor) -> Tensor:
    y = torch.einsum("...hf,hgf->...hg", x, weight)
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    return torch.cat((y.softmax(-1), (-y).softmax(-1)), dim=-1)
