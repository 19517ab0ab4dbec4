"""What the audit asks of a mixer, one check a function. Each raises a `Finding` at the first thing that is wrong."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from zoology.architectures.audit_bench import (
    EXACT32,
    TIGHT,
    Bench,
    Finding,
    blame,
    changed,
    make_inputs,
    scales,
    signature,
    state_bytes,
)
from zoology.architectures.audit_process import pack, to_bytes
from zoology.architectures.base import ContextMixer
from zoology.architectures.state import by_component, measure

Table = tuple[tuple[int, dict[str, dict[str, int]]], ...]
"""(tokens read, bytes by component and dtype), at some lengths."""

GROWS = "grows with the context"
_SIZES = (0.1, 1.0, 10.0)
_CHUNK_BYTES = 64 << 20


def splits(length: int) -> list[list[int]]:
    """Ways to read `length` tokens in pieces: at once, in several prefills, in steps (0), and mixed."""
    ways = [[length], [0] * length]
    if length > 2:
        third = max(1, length // 3)
        ways += [[1, third, length - third - 1], [length - third] + [0] * third]
    return ways


def check_interface(bench: Bench, lengths: Sequence[int]) -> None:
    """It runs at every length and batch size, and writes to none of its arguments, parameters and buffers."""
    module, batch = bench.fresh[-1], len(bench.x)
    before = {key: to_bytes(t) for key, t in _tensors(module)}
    start = bench.init_state(batch, module)
    for length in sorted(lengths, reverse=True):
        x = bench.x[:, :length]
        for n in {1, batch}:
            bench.step(x[:n, 0], bench.init_state(n, module), module)
            for context in (0, length) if isinstance(module, ContextMixer) else (0,):
                bench.context = context
                _, state = bench.read(x[:n], module)
                bench.step(x[:n, 0], state, module)
            bench.forward(x, module)
    bench.context = 0
    after = dict(_tensors(module))
    for key in sorted(before.keys() | after.keys()):
        if key not in after or key not in before or not torch.equal(before[key], to_bytes(after[key])):
            raise Finding(f"it writes to its parameters or buffers: {key!r} is not what it was before the calls")
    if not _same_state(start, bench.init_state(batch, module)):
        raise Finding("init_state gives another state after some calls than before them")


def check_structure(bench: Bench) -> None:
    """Containers, keys, shapes and dtypes of the state say nothing about the inputs."""
    rest = 7
    length = bench.context + rest
    inputs = [make_inputs(3, length, bench.d_model, bench.generator).to(bench.dtype) * s for s in (1, 0, -1, 3)]
    inputs += [make_inputs(3, length, bench.d_model, bench.generator).to(bench.dtype).roll(1, 0) for _ in range(4)]
    for way in ([rest], [0] * rest):
        seen: list[Any] = []
        for x in inputs:
            for rows in (x, x[:1]):
                _, state, start = bench.begin(rows)
                for t, piece in enumerate(way, start):
                    if piece:
                        _, state = bench.prefill(rows[:, start:], state)
                    else:
                        _, state = bench.step(rows[:, t], state)
                seen.append(signature(state))
        for index, got in enumerate(seen):
            if got != seen[index % 2]:
                difference = _first_difference(got, seen[index % 2])
                raise Finding(f"the state's keys, shapes or dtypes depend on what the inputs hold: {difference}")


def check_repeats(bench: Bench) -> None:
    """The same call gives the same, in either grad mode, and whatever was called before."""
    x = bench.x[:, :33]
    exact = TIGHT if bench.dtype == torch.float64 else EXACT32  # not the bench's: a mixer that varies would widen it
    module, other = bench.fresh[0], bench.fresh[1]
    head = min(max(5, bench.context), x.shape[1] - 1)
    first = bench.forward(x, module)
    again = bench.forward(x, module)
    if worst := bench.differ(again, first, exact):
        raise Finding(f"the same call twice gives other outputs: position {worst[1]} is off by {worst[2]:.2g}")
    with torch.enable_grad():
        tracked = bench.forward(x.clone().requires_grad_(), module)
        y, state = bench.read(x[:, :head].clone().requires_grad_(), module)
        z, _ = bench.step(x[:, head].clone().requires_grad_(), state, module)
    if worst := bench.differ(tracked, first, exact):
        raise Finding(f"with gradients on, the output at position {worst[1]} is off by {worst[2]:.2g}")
    y0, state = bench.read(x[:, :head], module)
    z0, _ = bench.step(x[:, head], state, module)
    pieces, pieces0 = torch.cat([y, z[:, None]], 1), torch.cat([y0, z0[:, None]], 1)
    if worst := bench.differ(pieces, pieces0, exact):
        raise Finding(f"with gradients on, prefill and step are off by {worst[2]:.2g} at position {worst[1]}")
    bench.forward(3 * bench.x.flip(1), module)
    for who in (module, other):
        if worst := bench.differ(bench.forward(x, who), first, exact):
            raise Finding(
                f"the output depends on what was called before: position {worst[1]} is off by {worst[2]:.2g} later on"
            )


def check_rows(bench: Bench, lengths: Sequence[int]) -> None:
    """A row of a batch gives what it gives alone, and keeps no more bytes for being one of many."""
    batch = len(bench.x)
    for length in lengths:
        x = bench.x[:, :length]
        together = bench.forward(x)
        head = bench.cut(length)
        _, state = bench.read(x[:, :head]) if head else (None, bench.init_state(batch))
        y, state = bench.prefill(x[:, head:], state)
        z, _ = bench.step(x[:, 0], state)
        for row in range(batch):
            alone = bench.forward(x[row : row + 1])
            _, own = bench.read(x[row : row + 1, :head]) if head else (None, bench.init_state(1))
            y1, own = bench.prefill(x[row : row + 1, head:], own)
            z1, _ = bench.step(x[row : row + 1, 0], own)
            for what, got, want in (
                ("forward", together[row : row + 1], alone),
                ("prefill", y[row : row + 1], y1),
                ("step", z[row : row + 1, None], z1[:, None]),
            ):
                if worst := bench.differ(got, want):
                    raise Finding(
                        f"rows of a batch are not independent: {what} gives row {row} an output that is off by "
                        f"{worst[2]:.2g} from what it gives that row alone"
                    )
    for length in (0, 7, 33):
        sizes = {}
        for n in (1, 2, batch, 9):
            state = bench.init_state(n)
            if length:
                x = make_inputs(n, length, bench.d_model, bench.generator).to(bench.dtype)
                _, state = bench.read(x)
            sizes[n] = state_bytes(state)
        for n, size in sizes.items():
            if size > n * sizes[1]:
                raise Finding(
                    f"a batch of {n} keeps {size} bytes after {length} tokens, more than {n} times the {sizes[1]} of "
                    "a batch of 1"
                )


def check_causality(bench: Bench, length: int, thorough: bool, cuts: Iterable[int] | None = None) -> None:
    """No output changes when inputs after it do; inputs after the context, where that is read whole.

    Args:
        bench: where it runs.
        length: of the sequences.
        thorough: at every cut all kinds of inputs with all sizes of changes; else two combinations a cut, in turn.
        cuts: the positions from which on inputs are changed; all of them where it is None.
    """
    base = bench.x[:, :length]
    want = bench.forward(base)
    combos = [(row, size) for row in range(len(base)) for size in _SIZES]
    rows: list[tuple[int, int, float]] = []
    for cut in range(1, length) if cuts is None else cuts:
        if cut < bench.context:
            continue
        some = combos if thorough else [combos[cut % len(combos)], combos[(5 * cut + 4) % len(combos)]]
        rows += [(cut, row, size) for row, size in some]
    tolerance = min(EXACT32, bench.tolerance)
    _, state = bench.read(base[:1])
    chunk = max(16, _CHUNK_BYTES // max(1, state_bytes(state)))
    worst: tuple[int, int, float] | None = None
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        x = torch.stack([changed(base[row], cut, size, bench.generator) for cut, row, size in part])
        got, kept = bench.forward(x), want[[row for _, row, _ in part]]
        before = torch.arange(length)[None] < torch.tensor([cut for cut, _, _ in part])[:, None]
        size = (got - kept).abs().amax(-1) * before
        for i, position in (size > tolerance * scales(kept)).nonzero().tolist():
            if worst is None or (part[i][0], size[i, position].item()) > (worst[1], worst[2]):
                worst = position, part[i][0], size[i, position].item()
    if worst is not None:
        raise Finding(
            f"the output at position {worst[0]} changes by {worst[2]:.2g} when the token at {worst[1]} changes "
            f"(of {length}, {bench.label}): it sees the future"
        )


def check_lengths(bench: Bench, lengths: Iterable[int]) -> None:
    """An output is the same however many tokens follow."""
    want = bench.forward(bench.x)
    for length in lengths:
        if worst := bench.differ(bench.forward(bench.x[:, :length]), want[:, :length]):
            raise Finding(
                f"the output at position {worst[1]} changes by {worst[2]:.2g} when the sequence is {length} tokens "
                f"long instead of {bench.x.shape[1]}: it depends on the length, or on tokens to come"
            )


def check_relay(bench: Bench, x: Tensor, ways: Iterable[Sequence[int]]) -> None:
    """Prefills and steps give what forward gives, from nothing but the state."""
    want = bench.forward(x)
    for way in ways:
        try:
            worst = bench.differ(bench.relay(x, way), want)
        except Finding:
            raise
        except Exception as error:  # in a module that did not read the beginning; if another can, that is the finding
            bench.relay(x, way, alone=True)
            raise Finding(
                f"it keeps something outside the state: handed to a fresh module with the same weights, the state is "
                f"not enough; it raises {blame(error, bench.file)}"
            ) from None
        if worst is None:
            continue
        plain = bench.differ(bench.relay(x, way, alone=True), want)
        what = "step" if not way[0] else "prefill in pieces" if way[-1] else "prefill, then step,"
        if plain is not None:
            raise Finding(
                f"{what} gives another function than forward: off by {plain[2]:.2g} at position {plain[1]} of "
                f"{x.shape[1]} {bench.label}"
            )
        raise Finding(
            f"it keeps something outside the state: handed to a fresh module with the same weights, the state "
            f"continues ({what.rstrip(',')}) with an output that is off by {worst[2]:.2g} at position {worst[1]}"
        )


def check_path(bench: Bench, lengths: Iterable[int]) -> None:
    """As many bytes are kept after a prefill as after the same tokens in steps."""
    for length in lengths:
        x = bench.x[:1, :length]
        _, state = bench.read(x)
        _, stepped, start = bench.begin(x)
        for t in range(start, length):
            _, stepped = bench.step(x[:, t], stepped)
        if state_bytes(state) != state_bytes(stepped):
            raise Finding(
                f"after {length} tokens, prefill leaves {state_bytes(state)} bytes of state and steps leave "
                f"{state_bytes(stepped)}"
            )


def check_gradients(bench: Bench, lengths: Iterable[int]) -> list[str]:
    """Gradients are finite. Returns the parameters that get none at any length."""
    module = bench.module
    reached: set[str] = set()
    parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        for length in lengths:
            x = bench.x[:2, :length].clone().requires_grad_()
            y = bench.call(module, x)
            if not y.requires_grad:
                continue
            loss = (y * torch.randn(y.shape, generator=bench.generator, dtype=y.dtype)).sum()
            found = torch.autograd.grad(loss, [x, *parameters.values()], allow_unused=True)
            for key, gradient in zip(["its input", *parameters], found, strict=True):
                if gradient is None:
                    continue
                reached.add(key)
                if not bool(torch.isfinite(gradient).all()):
                    raise Finding(f"the gradient of {key} is not finite, at {length} tokens {bench.label}")
    return [key for key in ["its input", *parameters] if key not in reached]


def make_cases(bench: Bench, cases: list[dict[str, Any]], expected: list[tuple[Bench, Tensor, str]]) -> None:
    """States to continue elsewhere, with what comes of it here: after a prefill, after steps, and from the start.

    The beginning of a sequence that is continued there is never read there: who keeps what it has read under the
    state's own bytes would find it.
    """
    x = bench.x
    length = x.shape[1]
    head = bench.cut(length)
    states: list[tuple[str, Tensor, Tensor, Any, list[int], int]] = []
    if head:
        want, rest = bench.forward(x)[:, head:], x[:, head:]
        _, state = bench.read(x[:, :head])
        states.append(("continued after prefill", rest, want, state, [0] * (length - head), 0))
        _, state, start = bench.begin(x[:, :head])
        for t in range(start, head):
            _, state = bench.step(x[:, t], state)
        pieces = [1, length - head - 1] if length > head + 1 else [1]
        states.append(("continued after steps", rest, want, state, pieces, 0))
    other = make_inputs(*x.shape, bench.generator).to(x.dtype)
    pieces = [length - head, *[0] * (head - bench.context)]
    states.append(("run", other, bench.forward(other), bench.init_state(len(x)), pieces, bench.context))
    for what, inputs, want, state, pieces, context in states:
        parts: list[Tensor] = []
        structure = pack(state, parts)
        cases.append(
            {
                "weights": bench.weights,
                "x": inputs.clone(),
                "structure": structure,
                "parts": parts,
                "pieces": pieces,
                "context": context,
            }
        )
        expected.append((bench, want, what))


def measure_growth(bench: Bench, lengths: Sequence[int]) -> tuple[str, Table]:
    """How the state of one sequence grows, in words, and its bytes by component at each of the lengths."""
    state, read, table, sizes = bench.init_state(1), 0, [], {}
    for length in sorted(lengths):
        if isinstance(bench.module, ContextMixer):  # as a context, or after one of one token: the larger counts
            x = make_inputs(1, length, bench.d_model, bench.generator).to(bench.dtype)
            state = max((_after(bench, x, context) for context in (1, length)), key=state_bytes)
        else:
            x = make_inputs(1, length - read, bench.d_model, bench.generator).to(bench.dtype)
            _, state = bench.prefill(x, state)
        read = length
        table.append((length, by_component(measure(state))))
        sizes[length] = state_bytes(state)
    last, final = max(sizes), sizes[max(sizes)]
    if len(set(sizes.values())) == 1:
        return "constant", tuple(table)
    full = min(length for length in sizes if all(sizes[n] == final for n in sizes if n >= length))
    if full == last:
        return GROWS, tuple(table)
    short = sorted(n for n in sizes if n < full)
    if len(short) > 1:  # growing by the token: where it reaches its final size follows from two short lengths
        per_token = (sizes[short[-1]] - sizes[short[0]]) / (short[-1] - short[0])
        if per_token > 0:
            full = min(full, round(short[0] + (final - sizes[short[0]]) / per_token))
    return f"grows, then stays at {full} tokens", tuple(table)


def _after(bench: Bench, x: Tensor, context: int) -> Any:
    """The state after x, of which `context` tokens are read whole."""
    bench.context = context
    return bench.read(x)[1]


def _tensors(module: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _same_state(a: Any, b: Any) -> bool:
    one: list[Tensor] = []
    two: list[Tensor] = []
    return pack(a, one) == pack(b, two) and all(map(torch.equal, one, two))


def _first_difference(a: Any, b: Any) -> str:
    """The first place at which two signatures differ, as 'x here, y there'."""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for one, two in zip(a, b, strict=True):
            if one != two:
                return _first_difference(one, two)
    return f"{a} for one, {b} for another"
