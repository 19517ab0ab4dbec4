"""The Triton kernels of `linear_cross_entropy` in the interpreter, float32 against float64. The op's tests run them."""

import pytest
import torch
from errors import near

from zoology.kernels.linear_cross_entropy import linear_cross_entropy, triton

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

IMPLEMENTATION = {"implementation": "triton"}


def inputs(m, v, d, seed=0, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, d, generator=rng) * s for n, s in ((m, scale), (v, 1.0)))
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(v, (m,), generator=rng)


def exact(hidden, weight, targets, grad, ignore_index=-100):
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    loss, right = linear_cross_entropy(h, w, targets, ignore_index=ignore_index, implementation="reference")
    return loss, right, *torch.autograd.grad(loss, (h, w), grad.double())


@pytest.mark.parametrize(
    ("m", "v", "d"),
    [(0, 5, 16), (1, 2, 1), (70, 64, 16), (65, 101, 33), (130, 33, 64), (40, 50, 128), (20, 30, 300)],
    ids=str,
)
def test_outputs_and_gradients(m, v, d):
    hidden, weight, targets = inputs(m, v, d, scale=2 * d**-0.5)
    targets[::3] = -100
    grad = torch.linspace(-1, 2, m)
    loss, right = linear_cross_entropy(hidden, weight, targets, **IMPLEMENTATION)
    got = torch.autograd.grad(loss, (hidden, weight), grad)
    want = exact(hidden, weight, targets, grad)
    assert loss.dtype == torch.float32
    assert torch.equal(right, want[1])
    for a, b in zip((loss, *got), (want[0], *want[2:]), strict=True):
        near(a, b)


def test_rows_in_several_pieces_add_up():
    hidden, weight, targets = inputs(1100, 20, 16)
    blocks = triton.backward_blocks(16, torch.float32)
    assert triton.pieces(1, 1100, 20, blocks, 8) == 2
    loss, _ = linear_cross_entropy(hidden, weight, targets, **IMPLEMENTATION)
    (got,) = torch.autograd.grad(loss.sum(), weight)
    near(got, exact(hidden, weight, targets, torch.ones(1100))[3])


def test_a_sure_model_keeps_the_digits_of_its_gradient():
    """Where p of the target is 1 - 1e-6, the gradient by the hidden row is what the others have, not 1 - p."""
    weight = torch.eye(16, requires_grad=True)
    targets = torch.arange(16)
    hidden = (16.5 * torch.eye(16)).requires_grad_()
    loss, right = linear_cross_entropy(hidden, weight, targets, **IMPLEMENTATION)
    (got,) = torch.autograd.grad(loss.sum(), hidden)
    assert right.all()
    near(got, exact(hidden, weight, targets, torch.ones(16))[2])


def test_a_sure_model_keeps_the_digits_of_its_weights_gradient_too():
    """In 16 bits, where p of the target, 1 - 1e-3, has three of them left below 1."""
    weight = torch.eye(16).half().requires_grad_()
    targets = torch.arange(16)
    hidden = (9.5 * torch.eye(16)).half()
    loss, _ = linear_cross_entropy(hidden, weight, targets, **IMPLEMENTATION)
    (got,) = torch.autograd.grad(loss.sum(), weight)
    h, w = hidden.double(), weight.detach().double().requires_grad_()
    want = linear_cross_entropy(h, w, targets, implementation="reference")[0]
    near(got, torch.autograd.grad(want.sum(), w)[0], 2e-3)


@pytest.mark.parametrize("size", [1.0, 40.0, 400.0])
def test_logits_far_above_the_targets_overflow_nothing(size):
    """Sums begin from the target's logit: where others are more than float32 above it, they begin anew."""
    hidden, weight, targets = inputs(40, 50, 16, scale=0.25)
    with torch.no_grad():
        hidden *= size
    targets[::3] = (hidden @ weight.T).argmin(1)[::3]  # exp(-1), exp(-50) and exp(-500) of the largest, about
    grad = torch.linspace(0.1, 2, 40)
    loss, right = linear_cross_entropy(hidden, weight, targets, **IMPLEMENTATION)
    got = torch.autograd.grad(loss, (hidden, weight), grad)
    want = exact(hidden, weight, targets, grad)
    assert torch.equal(right, want[1])
    for a, b in zip((loss, *got), (want[0], *want[2:]), strict=True):
        near(a, b)


@pytest.mark.parametrize("least", [-1.0, 0.0])
def test_ids_that_are_no_answers_get_their_gradients_too(least):
    """Blocks of ids without a target have a shorter way, where no gradient is negative."""
    hidden, weight, targets = inputs(70, 200, 16)
    targets = 150 + targets % 50
    targets[::5] = -100
    grad = torch.linspace(least, 2, 70)
    loss, _ = linear_cross_entropy(hidden, weight, targets, **IMPLEMENTATION)
    (got,) = torch.autograd.grad(loss, weight, grad)
    near(got, exact(hidden, weight, targets, grad)[3])


@pytest.mark.parametrize("size", [0.25, 100.0])
def test_a_loss_that_is_not_judged_is_the_same(size):
    hidden, weight, targets = inputs(70, 50, 16, scale=size)
    targets[::3] = -100
    outputs = []
    for judge in (True, False):
        loss, right = linear_cross_entropy(hidden, weight, targets, judge=judge, **IMPLEMENTATION)
        outputs.append((loss, *torch.autograd.grad(loss.sum(), (hidden, weight))))
    assert right.shape == (0,)
    for a, b in zip(*outputs, strict=True):
        near(b, a)


def test_an_ignored_id_may_be_one_of_the_vocabulary():
    hidden, weight, targets = inputs(50, 9, 16)
    loss, right = linear_cross_entropy(hidden, weight, targets, ignore_index=3, **IMPLEMENTATION)
    got = torch.autograd.grad(loss.sum(), (hidden, weight))
    want = exact(hidden, weight, targets, torch.ones(50), ignore_index=3)
    assert (targets == 3).any()
    assert torch.equal(right, want[1])
    for a, b in zip((loss, *got), (want[0], *want[2:]), strict=True):
        near(a, b)


def test_ties_go_to_the_lowest_id():
    weight = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    weight[70] = weight[10] = weight[12]
    hidden = weight[[10, 10, 10, 0]] * 5
    hidden[3] = 0
    for targets in ([10, 12, 70, 0], [12, 70, 10, 1]):
        targets = torch.tensor(targets)
        _, right = linear_cross_entropy(hidden, weight, targets, **IMPLEMENTATION)
        assert torch.equal(right, (hidden @ weight.T).argmax(1) == targets)


def test_nothing_labelled_and_what_is_out_of_range():
    hidden, weight, targets = inputs(70, 20, 16)
    loss, right = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100), **IMPLEMENTATION)
    grads = torch.autograd.grad(loss.sum(), (hidden, weight))
    assert not any(x.any() for x in (loss, right, *grads))
    targets[5], targets[6] = 20, -1
    loss, right = linear_cross_entropy(hidden, weight, targets, **IMPLEMENTATION)
    assert loss.isnan().nonzero().flatten().tolist() == [5, 6]
    assert not right[5:7].any()


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_replica_with_nan_leaves_the_others_as_they_were():
    models = [inputs(40, 30, 16, seed) for seed in range(2)]
    hidden, weight = (torch.stack([m[i] for m in models]).detach() for i in (0, 1))
    results = []
    for poison in (0.0, torch.nan):
        h, w = hidden.clone(), weight.clone()
        h[1] += poison
        h.requires_grad_(), w.requires_grad_()
        loss, right = linear_cross_entropy(h, w, models[0][2], **IMPLEMENTATION)
        results.append((loss, right, *torch.autograd.grad(loss.sum(), (h, w))))
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean[0], poisoned[0])
    assert results[1][0][1].isnan().all()
    assert not results[1][1][1].any()


@pytest.mark.parametrize("targets_dim", [None, 0])
@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0)], ids=str)
def test_vmap_is_a_loop(dims, targets_dim):
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(*([3] if dims[0] == 0 else []), 35, 16, generator=rng).requires_grad_()
    weight = torch.randn(*([3] if dims[1] == 0 else []), 40, 16, generator=rng).requires_grad_()
    targets = torch.randint(40, ((3, 35) if targets_dim == 0 else (35,)), generator=rng)

    def each(x, dim):
        return x if dim is None else x.unbind(0)

    def op(h, w, t):
        return linear_cross_entropy(h, w, t, **IMPLEMENTATION)

    in_dims = (*dims, targets_dim)
    loss, right = torch.func.vmap(op, in_dims=in_dims)(hidden, weight, targets)
    parts = [x if d == 0 else [x] * 3 for x, d in zip((hidden, weight, targets), in_dims, strict=True)]
    want = [torch.stack(x) for x in zip(*(op(*args) for args in zip(*parts, strict=True)), strict=True)]
    assert torch.equal(loss, want[0])
    assert torch.equal(right, want[1])
    for got, wanted in zip(
        torch.autograd.grad(loss.sum(), (hidden, weight)),
        torch.autograd.grad(want[0].sum(), (hidden, weight)),
        strict=True,
    ):
        near(got, wanted)


def test_vmap_in_vmap():
    rng = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(2, 3, n, 16, generator=rng) for n in (20, 25))
    targets = torch.randint(25, (3, 20), generator=rng)

    def op(h, w, t):
        return linear_cross_entropy(h, w, t, **IMPLEMENTATION)[0]

    got = torch.func.vmap(torch.func.vmap(op), in_dims=(0, 0, None))(hidden, weight, targets)
    want = [[op(hidden[i, j], weight[i, j], targets[j]) for j in range(3)] for i in range(2)]
    assert torch.equal(got, torch.stack([torch.stack(row) for row in want]))


def test_it_compiles_whole():
    hidden, weight = (torch.stack([inputs(30, 20, 16, s)[i] for s in (0, 1)]).detach() for i in (0, 1))
    targets = inputs(30, 20, 16)[2]

    def step(h, w):
        loss, right = torch.func.vmap(lambda h, w: linear_cross_entropy(h, w, targets, **IMPLEMENTATION))(h, w)
        return loss.mean(1).sum(), right

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss, right = function(h, w)
        results.append((loss, right, *torch.autograd.grad(loss, (h, w))))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("keep", [True, False])
def test_the_ops_hold_what_torch_asks_of_them(keep):
    hidden, weight, targets = inputs(20, 25, 16)
    weight = weight.unsqueeze(0).detach()
    args = (hidden.unsqueeze(0).detach().requires_grad_(), weight, weight.clone(), targets.unsqueeze(0))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton.forward, (*args, -100, keep, keep), test_utils=checks)
    loss, _, log_sum, _ = triton.forward(*args, -100, keep, True)
    hidden, _, cast, targets = (x.detach() for x in args)
    loss, log_sum = loss.detach(), log_sum.detach()
    by_loss = triton.factors(torch.ones_like(loss), targets, loss, log_sum, -100, torch.float32)
    torch.library.opcheck(triton.weight_gradient, (*by_loss, hidden, cast, targets, log_sum, torch.float32))


def test_without_what_the_forward_pass_keeps_the_gradients_are_the_same():
    hidden, weight, targets = (x.detach().unsqueeze(0) for x in inputs(20, 25, 16))
    grads = []
    for keep in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        grads.append(torch.autograd.grad(triton.forward(h, w, w.detach(), targets, -100, keep, True)[0].sum(), (h, w)))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused():
    hidden, weight, targets = inputs(20, 25, 16)
    loss, _ = linear_cross_entropy(hidden, weight, targets, **IMPLEMENTATION)
    (first,) = torch.autograd.grad(loss.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.square().sum(), weight)


def test_limits_are_named():
    hidden, weight, targets = inputs(3, 4, 513)
    with pytest.raises(ValueError, match="D = 513: the Triton kernel takes 1 to 512"):
        linear_cross_entropy(hidden, weight, targets, **IMPLEMENTATION)
    hidden, weight, targets = inputs(3, 4, 16)
    with pytest.raises(ValueError, match=r"torch\.float64: the Triton kernel takes"):
        linear_cross_entropy(hidden.double(), weight, targets, **IMPLEMENTATION)
    with pytest.raises(ValueError, match=r"V D = 2147483648: the Triton kernel takes less than 2\^31"):
        linear_cross_entropy(hidden, weight[:1].expand(2**27, 16), targets, **IMPLEMENTATION)
