"""The bench on which the audit runs a mixer: inputs, weights, tolerances, and calls that watch what a call touches."""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from zoology.architectures.audit_process import Types, Weights, build, pack, to_bytes, unpack
from zoology.architectures.base import ContextMixer, Mixer
from zoology.architectures.state import Path, leaves

TIGHT = 1e-6
"""Largest difference, relative to the size of a position's output, that float64 round-off may make."""
LOOSE = 1e-3
"""The same for a mixer that computes in float32, whatever it is given."""
EXACT32 = 1e-4
"""The same where one computation is run twice, in batches of other sizes perhaps."""

_TORCH = str(FilePath(torch.__file__).parent)
_OWN = str(FilePath(__file__).parent / "audit")
_PROBE = 1e-10
_NOISE = (1.0, 0.3, 0.1)


class Finding(Exception):
    """What is wrong with a mixer, in one line."""


def blame(error: BaseException, file: str = "") -> str:
    """What was raised, and where: the last line in `file`, or else the last that is neither torch's nor the audit's."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith((_TORCH, _OWN, "<frozen"))]
    at = ([f for f in theirs if f.filename == file] or theirs or frames)[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:200]} ({FilePath(at.filename).name}:{at.lineno})"


def check_state(state: Any, device: torch.device | str = "cpu") -> list[tuple[Path, Tensor]]:
    """The tensors of a state with their paths. They must lie on `device`.

    Raises:
        Finding: something in it is hidden from the measurement.
    """
    try:
        found = list(leaves(state))
    except (TypeError, ValueError) as error:
        raise Finding(f"{error} (keep a number as a tensor)") from None
    _no_attributes(state)
    for path, t in found:
        if t.is_nested or t.device.type != torch.device(device).type:
            raise Finding(f"{_where(path)} is not a dense tensor on the parameters' device; it cannot be measured")
    return found


def _no_attributes(state: Any, path: Path = ()) -> None:
    """Raise a Finding where a tensor or container of the state carries attributes, or a key is more than a string."""
    if getattr(state, "__dict__", None):
        names = ", ".join(state.__dict__)
        raise Finding(
            f"{_where(path)} carries the attribute {names}: what hangs on a tensor or container is not measured"
        )
    if isinstance(state, dict):
        for key, value in state.items():
            if type(key) is not str:
                raise Finding(f"{_where(path)} has a key of type {type(key).__name__}; keys must be plain strings")
            _no_attributes(value, (*path, key))
    elif isinstance(state, tuple | list):
        for key, value in zip(getattr(state, "_fields", map(str, range(len(state)))), state, strict=True):
            _no_attributes(value, (*path, key))


def _where(path: Path) -> str:
    return f"state {'.'.join(path)!r}" if path else "the state"


def state_bytes(state: Any) -> int:
    """Bytes of the tensors of a state."""
    return sum(t.numel() * t.element_size() for _, t in check_state(state))


def signature(state: Any) -> list[Any]:
    """A state's containers, keys, shapes and dtypes: all of it that is no tensor's content."""
    return pack(state, [])


def scales(y: Tensor) -> Tensor:
    """What a difference of y (batch, time, d_model) is measured against: the size of the position, (batch, time).

    Each position has its own, or a loud one would drown what is wrong with the others. Where an output all but vanishes
    it is a hundredth of the row's quiet positions.
    """
    size = y.detach().abs().amax(-1)
    quiet = size.sort(dim=1).values[:, size.shape[1] // 10]
    return torch.maximum(size, 0.01 * quiet[:, None]).clamp_min(1e-30)


def make_inputs(batch: int, time: int, d_model: int, generator: torch.Generator) -> Tensor:
    """(batch, time, d_model) float64: rows in turn Gaussian, a few vectors repeated (as tokens are), and large."""
    x = torch.randn(batch, time, d_model, generator=generator, dtype=torch.float64)
    few = torch.randn(4, d_model, generator=generator, dtype=torch.float64)
    x[1::3] = few[torch.randint(4, (len(x[1::3]), time), generator=generator)]
    x[2::3] *= 6
    return x


def changed(x: Tensor, cut: int, size: float, generator: torch.Generator) -> Tensor:
    """One sequence x (time, d_model) with other inputs from `cut` on, drawn in float64.

    Moved a little where size < 1; else replaced by others `size` times as large, of which half repeat a vector of x, as
    a token that was seen before does.
    """
    future = x[cut:]
    noise = size * torch.randn(future.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    if size < 1:
        return torch.cat([x[:cut], future + noise])
    repeats = size * x[torch.randint(len(x), (len(future),), generator=generator)]
    pick = torch.rand(len(future), 1, generator=generator) < 0.5
    return torch.cat([x[:cut], torch.where(pick, repeats, noise)])


@dataclass
class Bench:
    """One mixer with one set of weights in one dtype.

    Attributes:
        weights: the state dict that every module is given, taken before anything ran.
        x: (batch, time, d_model) inputs; the checks use prefixes of it.
        tolerance: largest difference allowed, relative to the size of a position's output.
        label: what is said about the weights in a finding.
        context: tokens at the beginning that a `ContextMixer` reads whole; 0 for every other mixer.
    """

    name: str
    d_model: int
    settings: dict[str, Any]
    seed: int
    dtype: torch.dtype
    weights: Weights
    x: Tensor
    generator: torch.Generator
    label: str
    tolerance: float = TIGHT
    context: int = 0
    types: Types = field(default_factory=dict)
    modules: list[Mixer] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Built before anything runs, so that none can inherit what a call leaves in its class or module.
        self.modules = [self._build() for _ in range(5)]

    def _build(self) -> Mixer:
        return build(self.name, self.d_model, self.settings, self.seed, self.dtype, self.weights)

    @property
    def file(self) -> str:
        """The file in which the mixer's class is written."""
        return str(getattr(sys.modules.get(type(self.module).__module__), "__file__", ""))

    @property
    def module(self) -> Mixer:
        """The module that runs what needs no fresh one."""
        return self.modules[0]

    @property
    def fresh(self) -> list[Mixer]:
        """Modules to hand a state to, in turn."""
        return self.modules[1:]

    def forward(self, x: Tensor, module: Mixer | None = None) -> Tensor:
        """module(x), (batch, time, d_model)."""
        y = self._watch("forward", lambda given, _: self.call(module or self.module, given), x, None)
        return self._check_output("forward", y, x)

    def call(self, module: Mixer, x: Tensor) -> Any:
        """module(x), told where the context ends if it reads that whole."""
        return module(x, min(max(self.context, 1), x.shape[1])) if isinstance(module, ContextMixer) else module(x)

    def begin(self, x: Tensor, module: Mixer | None = None) -> tuple[list[Tensor], Any, int]:
        """What there is before the first prefill or step of x: outputs (one or none), the state, tokens read whole."""
        reader = module or self.module
        if not isinstance(reader, ContextMixer) or not self.context:
            return [], self.init_state(len(x), module), 0
        context = x[:, : self.context].contiguous()
        y, state = self._pair("read_context", lambda given, _: reader.read_context(given), context, None)
        return [y], state, context.shape[1]

    def read(self, x: Tensor, module: Mixer | None = None) -> tuple[Tensor, Any]:
        """x from its beginning: the context, where it is read whole, and one prefill of the rest."""
        outputs, state, t = self.begin(x, module)
        if t < x.shape[1]:
            y, state = self.prefill(x[:, t:], state, module)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    def cut(self, length: int) -> int:
        """The middle of what follows the context."""
        return self.context + (length - self.context) // 2

    def prefill(self, x: Tensor, state: Any, module: Mixer | None = None) -> tuple[Tensor, Any]:
        """module.prefill(x, state)."""
        return self._pair("prefill", (module or self.module).prefill, x, state)

    def step(self, x: Tensor, state: Any, module: Mixer | None = None) -> tuple[Tensor, Any]:
        """module.step(x, state) with x (batch, d_model)."""
        return self._pair("step", (module or self.module).step, x, state)

    def init_state(self, batch: int, module: Mixer | None = None) -> Any:
        """module.init_state(batch), its structure checked."""
        state = (module or self.module).init_state(batch)
        check_state(state)
        return state

    def copy(self, state: Any) -> Any:
        """A state made anew from the bytes of its tensors."""
        parts: list[Tensor] = []
        check_state(state)
        structure = pack(state, parts, self.types)
        return unpack(structure, iter(parts), self.types)

    def _pair(self, what: str, method: Callable[..., Any], x: Tensor, state: Any) -> tuple[Tensor, Any]:
        out = self._watch(what, method, x, state)
        if not isinstance(out, tuple) or len(out) != 2:
            raise Finding(f"{what} returns {type(out).__name__}; it must return the pair (y, state)")
        self._check_output(what, out[0], x)
        check_state(out[1])
        return out

    def _watch(self, what: str, method: Callable[..., Any], x: Tensor, state: Any) -> Any:
        """Call a method on a copy of x, and see that it wrote neither to x nor to the state."""
        given = x.clone()
        before = None if state is None else [(path, t, to_bytes(t)) for path, t in check_state(state)]
        out = method(given, state)
        if not torch.equal(given, x):
            size = (given - x).abs().max().item()
            raise Finding(f"{what} writes into its input x (by up to {size:.2g}): the residual stream would carry it")
        if before is not None:
            now = check_state(state)
            if len(now) != len(before):
                raise Finding(f"{what} changes the state that it is given: {len(before)} tensors became {len(now)}")
            for (path, old, content), (_, new) in zip(before, now, strict=True):
                if new is not old or not torch.equal(content, to_bytes(new)):
                    raise Finding(f"{what} writes into the state that it is given ({_where(path)})")
        return out

    def _check_output(self, what: str, y: Any, x: Tensor) -> Tensor:
        if type(y) is not Tensor:
            raise Finding(f"{what} returns a {type(y).__name__} as output; it must be a tensor")
        if y.shape != x.shape:
            raise Finding(f"{what} of x {tuple(x.shape)} gives an output of shape {tuple(y.shape)}; they must be equal")
        if y.dtype != x.dtype or y.device != x.device:
            raise Finding(f"{what} of {x.dtype} on {x.device} gives {y.dtype} on {y.device}; they must be equal")
        if not bool(torch.isfinite(y).all()):
            row = int((~torch.isfinite(y)).flatten(1).any(1).nonzero()[0])
            size = x[row].abs().max().item()
            raise Finding(
                f"{what} gives outputs that are not finite, for inputs no larger than {size:.1f} {self.label}"
            )
        return y

    def relay(self, x: Tensor, pieces: Sequence[int], alone: bool = False) -> Tensor:
        """x (batch, time, d_model) read in pieces, each a prefill's length or 0 for a step -> outputs.

        The state goes through its bytes to another module after each piece, and another sequence runs in between,
        unless `alone`: then one module does it all in the ordinary way.
        """
        modules = [self._build()] if alone else self.fresh
        other = torch.roll(x, 1, dims=0).flip(1)
        runs: list[list[Any]] = []
        t = 0
        for sequence, module in ((x, modules[0]), (other, modules[-1]))[: 1 if alone else 2]:
            outputs, state, t = self.begin(sequence, module)
            runs.append([sequence, state if alone else self.copy(state), outputs])
        for i, piece in enumerate(pieces):
            for j, run in enumerate(runs):
                module = modules[(i + j) % len(modules)]
                if piece:
                    y, state = self.prefill(run[0][:, t : t + piece].contiguous(), run[1], module)
                else:
                    y, state = self.step(run[0][:, t].contiguous(), run[1], module)
                    y = y[:, None]
                run[1] = state if alone else self.copy(state)
                run[2].append(y)
            t += max(piece, 1)
        return torch.cat(runs[0][2], dim=1)

    def differ(self, got: Tensor, want: Tensor, tolerance: float | None = None) -> tuple[int, int, float] | None:
        """(row, position, size) of the largest difference of (batch, time, d_model) beyond the tolerance, or None."""
        size = (got - want).detach().abs().amax(-1) / scales(want)
        worst = int(size.argmax())
        row, position = divmod(worst, size.shape[1])
        if size[row, position].item() <= (self.tolerance if tolerance is None else tolerance):
            return None
        return row, position, (got - want)[row, position].abs().max().item()


def probe(bench: Bench) -> float:
    """By how much a change of 1e-10 of the inputs is amplified; infinity where it fails or overflows.

    A mixer that rounds to float32 inside shows as a large amplification, or as none: then this is 1e4.
    """
    noise = torch.randn(bench.x.shape, generator=bench.generator, dtype=bench.dtype)
    try:
        y = bench.forward(bench.x)
        z = bench.forward(bench.x + _PROBE * bench.x.abs().amax((1, 2), keepdim=True) * noise)
    except Exception:  # a check meets it again, and says what it is
        return float("inf")
    if (y == z).double().mean() > 0.5:
        return 1e4
    return float(((y - z).abs().amax(-1) / scales(y)).max() / _PROBE)


def with_noise(weights: Weights, trained: set[str], size: float, generator: torch.Generator) -> Weights:
    """Weights with noise on every parameter, so that what a zero-initialised gate hides is seen.

    Args:
        weights: a state dict.
        trained: the names in it that are parameters; buffers stay as they are.
        size: standard deviation of the noise, relative to the larger of 0.3 and half of the parameter's own size.
    """
    noisy = {}
    for key, t in weights.items():
        noisy[key] = t
        if key in trained and (t.is_floating_point() or t.is_complex()):
            rms = t.abs().square().mean().sqrt().item() if t.numel() else 0.0
            noise = torch.randn(t.shape, generator=generator, dtype=t.dtype)
            noisy[key] = t + size * max(0.3, 0.5 * rms) * noise
    return noisy


def benches(
    name: str, d_model: int, settings: dict[str, Any], seed: int, batch: int, time: int
) -> tuple[list[Bench], list[str]]:
    """The benches to run a mixer on, and notes: weights as initialised and with noise, in float64 where it can.

    The last two are in float32, as models are scored: a mixer may do one thing in one dtype and another in the other.
    """
    made: list[Bench] = []
    notes: list[str] = []

    def make(dtype: torch.dtype, weights: Weights, label: str, tolerance: float) -> Bench:
        generator = torch.Generator().manual_seed(seed)
        x = make_inputs(batch, time, d_model, generator).to(dtype)
        weights = {key: t.to(dtype) if t.is_floating_point() else t for key, t in weights.items()}
        return Bench(name, d_model, settings, seed, dtype, weights, x, generator, label, tolerance)

    first = build(name, d_model, settings, seed, torch.float32)
    weights = {key: t.detach().clone() for key, t in first.state_dict().items()}
    trained = {key for key, _ in first.named_parameters()}
    dtypes = [torch.float32]
    if _runs_in_double(make, weights):
        dtypes.insert(0, torch.float64)
    else:
        notes.append("it cannot run in float64: checked in float32, with looser tolerances")

    chosen, tolerance = _NOISE[-1], LOOSE
    candidates = []
    for size in _NOISE:
        noisy = with_noise(weights, trained, size, torch.Generator().manual_seed(seed + 1))
        amplified = probe(make(dtypes[0], noisy, "", TIGHT))
        if dtypes[0] == torch.float64 and amplified <= 1e3:
            chosen, tolerance, candidates = size, TIGHT, []
            break
        if amplified < 1e8:
            candidates.append(size)
    if candidates:
        chosen = candidates[0]
    if chosen != _NOISE[0]:
        notes.append(f"noise on the weights held down to {chosen:g}: with more, it is unstable")
    noisy = with_noise(weights, trained, chosen, torch.Generator().manual_seed(seed + 1))
    for dtype in dtypes:
        for values, label in ((weights, "at its initial weights"), (noisy, "at noisy weights")):
            made.append(make(dtype, values, label, tolerance if dtype == torch.float64 else LOOSE))
    if dtypes[0] == torch.float64 and tolerance == TIGHT and probe(made[0]) > 1e3:
        made[0].tolerance = LOOSE
    return made, notes


def _runs_in_double(make: Callable[..., Bench], weights: Weights) -> bool:
    try:
        with torch.no_grad():
            bench = make(torch.float64, weights, "", TIGHT)
            y = bench.call(bench.module, bench.x.clone())
            z, _ = bench.module.step(bench.x[:, 0].clone(), bench.module.init_state(len(bench.x)))
            return bool(y.dtype == z.dtype == torch.float64)
    except Exception:  # whatever it is, the run in float32 meets it again, or it is float64 that it cannot do
        return False
