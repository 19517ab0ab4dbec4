"""What every mixer must hold to, as checks that its tests call with a definition of their own."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from zoology.architectures.base import ContextMixer, Mixer, build_mixer
from zoology.architectures.state import leaves


def shaken(mixer: nn.Module, seed: int = 0, size: float = 0.1) -> nn.Module:
    """The same module with noise on every parameter, so that nothing hides behind a weight that starts at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    return mixer


def assert_follows(
    mixer: Mixer,
    definition: Callable[..., Tensor],
    x: Tensor,
    rtol: float = 1e-8,
    atol: float = 1e-9,
    context: int | None = None,
) -> None:
    """`forward` gives the outputs of `definition(mixer, x)`, and the same gradients for x and every parameter.

    The definition is written from the paper's recurrence, token by token, on the mixer's own parameters. Both are given
    `context` too where it is set: where the context ends, for a mixer that reads it whole.
    """
    x = x.detach().requires_grad_()
    inputs = (x, *(p for p in mixer.parameters() if p.requires_grad))
    more = () if context is None else (context,)
    y, expected = mixer(x, *more), definition(mixer, x, *more)
    torch.testing.assert_close(y, expected, rtol=rtol, atol=atol)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    names = ["x", *(name for name, p in mixer.named_parameters() if p.requires_grad)]
    got, want = (torch.autograd.grad(out, inputs, cotangent, allow_unused=True) for out in (y, expected))
    for name, one, other in zip(names, got, want, strict=True):
        assert (one is None) == (other is None), f"gradient of {name}: {one} where the definition has {other}"
        if one is not None:
            torch.testing.assert_close(one, other, rtol=rtol, atol=atol, msg=lambda m, n=name: f"gradient of {n}: {m}")


def assert_continues(mixer: Mixer, x: Tensor, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    """Pieces, cut anywhere, and single steps give the outputs of the whole, and the state of the whole.

    A mixer that reads its context whole is cut anywhere after it, for contexts of several lengths.
    """
    with torch.no_grad():
        if isinstance(mixer, ContextMixer):
            for context in (1, x.shape[1] // 3, x.shape[1]):
                _assert_continues_after(mixer, x, context, rtol, atol)
        else:
            _assert_continues(mixer, x, rtol, atol)


def _assert_continues_after(mixer: ContextMixer, x: Tensor, context: int, rtol: float, atol: float) -> None:
    whole = mixer(x, context)
    y, after = mixer.read_context(x[:, :context])
    torch.testing.assert_close(y, whole[:, :context], rtol=rtol, atol=atol)
    rest = x[:, context:]
    _, want = mixer.prefill(rest, after)
    for size in (1, 2, 5):
        state = after
        for start in range(0, rest.shape[1], size):
            y, state = mixer.prefill(rest[:, start : start + size], state)
            there = slice(context + start, context + start + size)
            torch.testing.assert_close(y, whole[:, there], rtol=rtol, atol=atol)
        _assert_same_state(state, want, rtol, atol)
    for t in range(rest.shape[1]):
        y, after = mixer.step(rest[:, t], after)
        torch.testing.assert_close(y, whole[:, context + t], rtol=rtol, atol=atol)
    _assert_same_state(after, want, rtol, atol)


def _assert_continues(mixer: Mixer, x: Tensor, rtol: float, atol: float) -> None:
    batch, time, _ = x.shape
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

    more = (time // 2,) if isinstance(copies[0], ContextMixer) else ()

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(copies[0], (parameters, buffers), (x, *more))

    y = vmap(run, randomness="different")(parameters, buffers, x)
    y.square().sum().backward()
    for index, copy in enumerate(copies):
        alone = copy(x[index], *more)
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
