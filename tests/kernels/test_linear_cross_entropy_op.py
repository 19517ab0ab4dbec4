"""Cross-entropy of a tied head: the reference against its definition, then the Triton kernel against both."""

import pytest
import torch
from interpreter import needs_triton, run

from zoology.kernels import replicas
from zoology.kernels.linear_cross_entropy import linear_cross_entropy


def inputs(m, v, d, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, d, generator=rng, dtype=torch.float64) for n in (m, v))
    targets = torch.randint(v, (m,), generator=rng)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


@pytest.mark.parametrize(("m", "v", "d"), [(0, 5, 3), (1, 2, 1), (7, 5, 3), (20, 33, 16)])
def test_the_reference_is_its_definition(m, v, d):
    hidden, weight, targets = inputs(m, v, d)
    targets[::3] = -100
    loss, right = linear_cross_entropy(hidden, weight, targets)
    counted = targets != -100
    logits = hidden @ weight.T
    expected = torch.zeros(m, dtype=torch.float64)
    for row in counted.nonzero().flatten().tolist():
        expected[row] = logits[row].exp().sum().log() - logits[row, targets[row]]
    torch.testing.assert_close(loss, expected)
    assert torch.equal(right, counted & (logits.argmax(1) == targets))
    grad = torch.linspace(-1, 2, m, dtype=torch.float64)
    slope = (logits.softmax(1) - torch.nn.functional.one_hot(targets.clamp(0), v)) * (grad * counted).unsqueeze(1)
    got = torch.autograd.grad(loss, (hidden, weight), grad)
    torch.testing.assert_close(got, (slope @ weight, slope.T @ hidden))


def test_low_precision_has_float32_losses_and_its_own_gradients():
    hidden, weight, targets = inputs(20, 33, 16, torch.bfloat16)
    weight = weight.detach().float().requires_grad_()
    loss, _ = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    grads = torch.autograd.grad(loss.sum(), (hidden, weight))
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32]


def test_ties_go_to_the_lowest_id_and_nan_is_never_right():
    hidden, weight = torch.zeros(3, 4), torch.ones(5, 4)
    hidden[2] = torch.nan
    _, right = linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 0]))
    assert right.tolist() == [True, False, False]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_vmap_and_a_replica_axis_are_a_loop(shared):
    models = [inputs(9, 7, 4, seed=seed) for seed in range(3)]
    hidden, weight, targets = (torch.stack(x) for x in zip(*models, strict=True))
    targets = targets[0] if shared else targets
    lists = [targets] * 3 if shared else targets
    loop = [linear_cross_entropy(h, w, t) for h, w, t in zip(hidden, weight, lists, strict=True)]
    loop = [torch.stack(x) for x in zip(*loop, strict=True)]
    mapped = torch.func.vmap(linear_cross_entropy, in_dims=(0, 0, None if shared else 0))(hidden, weight, targets)
    for got in (mapped, linear_cross_entropy(hidden, weight, targets)):
        torch.testing.assert_close(list(got), loop)


def test_bad_input_is_named():
    hidden, weight, targets = inputs(4, 5, 3, torch.float32)
    for bad in (
        (hidden[:, :2], weight, targets),
        (hidden, weight, targets[:2]),
        (hidden.unsqueeze(0), weight, targets),
        (hidden[0], weight, targets),
    ):
        with pytest.raises(ValueError, match=r"must be \(M, D\), \(V, D\), \(M,\)"):
            linear_cross_entropy(*bad)
    with pytest.raises(ValueError, match="weight has 1 rows: must have at least 2"):
        linear_cross_entropy(hidden, weight[:1], targets)
    with pytest.raises(ValueError, match=r"torch\.int32: must be"):
        linear_cross_entropy(hidden, weight, targets.int())
    with pytest.raises(ValueError, match="'cuda': must be 'reference', 'triton' or None"):
        linear_cross_entropy(hidden, weight, targets, implementation="cuda")


def test_triton_is_refused_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(replicas, "INTERPRETED", False)
    monkeypatch.setattr(replicas, "HAS_TRITON", True)
    with pytest.raises(ValueError, match="tensors are on cpu, and must be on a CUDA device"):
        replicas.choose("triton", torch.device("cpu"))
    monkeypatch.setattr(replicas, "HAS_TRITON", False)
    with pytest.raises(ValueError, match="Triton is not installed"):
        replicas.choose("triton", torch.device("cuda"))


def test_a_gpu_without_triton_gets_the_reference_and_one_warning(monkeypatch, recwarn):
    monkeypatch.setattr(replicas, "HAS_TRITON", False)
    monkeypatch.setattr(replicas, "_warned", False)
    assert [replicas.choose(None, torch.device("cuda")) for _ in range(3)] == ["reference"] * 3
    assert [str(w.message) for w in recwarn] == ["Triton is not installed: the slower PyTorch kernels run"]
    monkeypatch.setattr(replicas, "HAS_TRITON", True)
    assert replicas.choose(None, torch.device("cuda")) == "triton"
    assert replicas.choose(None, torch.device("cpu")) == "reference"


@needs_triton
def test_the_kernel_in_the_interpreter():
    run("interpreted_linear_cross_entropy.py")
