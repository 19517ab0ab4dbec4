"""What every mixer must hold to, as checks that its tests call with a definition of their own."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from zoology.architectures.base import Mixer, build_mixer
from zoology.architectures.state import leaves


def shaken(mixer: nn.Module, seed: int = 0, size: float = 0.1) -> nn.Module:
    """The same module with noise on every parameter, so that nothing hides behind a weight that starts at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    return mixer


def assert_follows(
    mixer: Mixer, definition: Callable[[Any, Tensor], Tensor], x: Tensor, rtol: float = 1e-8, atol: float = 1e-9
) -> None:
    """`forward` gives the outputs of `definition(mixer, x)`, and the same gradients for x and every parameter.

    The definition is written from the paper's recurrence, token by token, on the mixer's own parameters.
    """
    x = x.detach().requires_grad_()
    inputs = (x, *(p for p in mixer.parameters() if p.requires_grad))
    y, expected = mixer(x), definition(mixer, x)
    torch.testing.assert_close(y, expected, rtol=rtol, atol=atol)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    names = ["x", *(name for name, p in mixer.named_parameters() if p.requires_grad)]
    got, want = (torch.autograd.grad(out, inputs, cotangent, allow_unused=True) for out in (y, expected))
    for name, one, other in zip(names, got, want, strict=True):
        assert (one is None) == (other is None), f"gradient of {name}: {one} where the definition has {other}"
        if one is not None:
            torch.testing.assert_close(one, other, rtol=rtol, atol=atol, msg=lambda m, n=name: f"gradient of {n}: {m}")


def assert_continues(mixer: Mixer, x: Tensor, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    """Pieces, cut anywhere, and single steps give the outputs of the whole, and the state of the whole."""
    batch, time, _ = x.shape
    with torch.no_grad():
        whole = mixer(x)
        _, want = mixer.prefill(x, mixer.init_state(batch))
        for cuts in (range(time + 1), (0, time), (0, time // 3, time // 3, time), (0, 1, time - 1, time)):
            state, pieces = mixer.init_state(batch), []
            for a, b in itertools.pairwise(cuts):
                y, state = mixer.prefill(x[:, a:b], state)
                pieces.append(y)
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=rtol, atol=atol)
            _assert_same_state(state, want, rtol, atol)
        state = mixer.init_state(batch)
        for t in range(time):
            y, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], rtol=rtol, atol=atol)
        _assert_same_state(state, want, rtol, atol)


def assert_stacks(name: str, d_model: int, settings: dict[str, Any] | None = None, time: int = 19) -> None:
    """Three copies with weights of their own, stacked along a leading axis and run by `vmap`, give each one's outputs
    and gradients: what training all replicas of a trial as one stands on."""
    copies = [shaken(build_mixer(name, d_model, settings).double(), seed) for seed in range(3)]
    parameters, buffers = stack_module_state(copies)
    x = torch.randn(3, 2, time, d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(copies[0], (parameters, buffers), (x,))

    y = vmap(run, randomness="different")(parameters, buffers, x)
    y.square().sum().backward()
    for index, copy in enumerate(copies):
        alone = copy(x[index])
        torch.testing.assert_close(y[index], alone, rtol=1e-9, atol=1e-10)
        copy.zero_grad()
        alone.square().sum().backward()
        for key, parameter in copy.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameters[key].grad[index], parameter.grad, rtol=1e-7, atol=1e-9)


def _assert_same_state(got: Any, want: Any, rtol: float, atol: float) -> None:
    for (path, one), (other_path, other) in zip(leaves(got), leaves(want), strict=True):
        assert path == other_path
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, msg=lambda m, p=path: f"state {'.'.join(p)}: {m}")
