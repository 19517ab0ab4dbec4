"""The audit's backstop: a trained model against itself, on the sequences that are scored.

A mixer may be honest on the audit's inputs and act only on real tokens, lengths or trained weights. So before a score
counts, the logits of `forward` are compared with those of a fresh model that is handed nothing but the weights, the
context's state as bytes, and then one token at a time.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from zoology.architectures.audit_bench import Finding, check_state
from zoology.architectures.audit_process import Types, pack, unpack


def verify_trained(
    model_factory: Callable[[], nn.Module],
    model: nn.Module,
    tokens: Tensor,
    context_length: int,
    tolerance: float = 1e-2,
    scored: Tensor | None = None,
    share: float = 0.005,
    stepped: Tensor | None = None,
) -> str | None:
    """Whether a trained model's scores come from its past and its state: None, or in one line what does not fit.

    Args:
        model_factory: builds an untrained model of the same settings. Called twice, before anything runs.
        model: the trained one, with forward, read_context, prefill, step and init_state over tokens as
            `model.LanguageModel` has. If it `reads_context`, tokens are changed after the context only.
        tokens: (batch, time) as they are scored; batch at least 2. Some dozens of sequences are enough.
        context_length: where the context ends: prefilled up to there, then token by token.
        tolerance: largest difference of a position's logits, in standard deviations of its logits over the vocabulary.
            Float32 round-off stays a hundred times below, with weights far larger than trained ones too; what changes a
            prediction that the model is sure of lies far above.
        scored: (batch, time) bool, the positions that carry a label. `share` is asked of these alone too.
        share: of the positions that may exceed the tolerance, as a near tie may be broken either way (by a top-k).
        stepped: what `step_together` found for this model. The model steps by itself where its head makes other logits
            of that.
    """
    fresh = [model_factory() for _ in range(2)]
    training = model.training
    parameter = next(model.parameters())
    weights = {key: t.detach().clone() for key, t in model.state_dict().items()}
    try:
        model.eval()
        for other in fresh:
            other.to(device=parameter.device, dtype=parameter.dtype).load_state_dict(weights)
            other.eval()
        with torch.no_grad():
            return _compare(fresh, model, tokens, context_length, tolerance, scored, share, stepped)
    except Finding as finding:
        return str(finding)
    finally:
        model.train(training)


def step_together(
    model_factory: Callable[[], nn.Module], weights: dict[str, Tensor], tokens: Tensor, context_length: int
) -> Tensor:
    """What the heads of trained models read when they run from their states, all at a time, (R, batch, time, d_model).

    It is most of the work of `verify_trained`, which then compares it. One of the models should be verified without:
    the one whose state is measured.

    Args:
        model_factory: as for `verify_trained`; its models take `logits=False`.
        weights: every parameter and buffer, stacked: (R, *shape) each.
        tokens, context_length: as for `verify_trained`.

    Raises:
        Exception: whatever comes of a mixer that `torch.vmap` cannot take, or whose state is refused.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # some kernels are called model by model
        return _in_pieces([_Together(model_factory(), weights) for _ in range(2)], tokens, context_length)


class _Together:
    """A language model's interface for R sets of weights: states and outputs have a leading replica axis."""

    def __init__(self, model: Any, weights: dict[str, Tensor]):
        self.reads_context = model.reads_context
        self._call = _Call(model.eval().requires_grad_(False))
        self._weights = {f"model.{name}": t for name, t in weights.items()}

    def init_state(self, batch_size: int) -> Any:
        return vmap(lambda weights: functional_call(self._call, weights, ("init_state", batch_size)))(self._weights)

    def read_context(self, tokens: Tensor) -> tuple[Tensor, Any]:
        return self._run("read_context", tokens)

    def prefill(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self._run("prefill", tokens, state)

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self._run("step", tokens, state)

    def _run(self, method: str, tokens: Tensor, *state: Any) -> tuple[Tensor, Any]:
        def one(weights: dict[str, Tensor], *state: Any) -> tuple[Tensor, Any]:
            return functional_call(self._call, weights, (method, tokens, *state), {"logits": False})

        return vmap(one)(self._weights, *state)


class _Call(nn.Module):
    """Any method of a model as a forward, which is what `functional_call` calls."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.model, method)(*args, **kwargs)


def _compare(
    fresh: list[Any],
    model: Any,
    tokens: Tensor,
    context: int,
    tolerance: float,
    scored: Tensor | None,
    share: float,
    stepped: Tensor | None,
) -> str | None:
    batch, time = tokens.shape
    if batch < 2 or not 1 <= context <= time:
        raise ValueError(f"tokens {(batch, time)} with a context of {context}: needs 2 rows and a context inside them")
    want = model(tokens, context_length=context).float()
    if not bool(torch.isfinite(want).all()):
        return "the logits are not finite"
    # A position whose logits are all but equal has no prediction to speak of: measured against the others, then.
    spread = want.std(-1)
    spread = spread.clamp_min(0.1 * spread.mean().item()).clamp_min(1e-12)

    def off(got: Tensor, seen: Tensor | None = None) -> tuple[int, int, float] | None:
        """(row, position, size) of the largest difference where too many positions differ, or None."""
        size = (got.float() - want).abs().amax(-1) / spread
        size = size.nan_to_num(nan=float("inf"))
        if seen is not None:
            size = size * seen
        bad = size > tolerance
        kinds = [torch.ones_like(bad) if seen is None else seen]
        if scored is not None:
            kinds.append(kinds[0] & scored.to(bad.device))
        if not any(bool((bad & kind).sum() > share * kind.sum()) for kind in kinds):
            return None
        row, position = divmod(int(size.argmax()), time)
        return row, position, size[row, position].item()

    half = batch // 2
    parts = zip(fresh, (tokens[:half], tokens[half:]), strict=True)
    if worst := off(torch.cat([other(rows, context_length=context) for other, rows in parts])):
        return f"logits depend on the other rows of the batch: off by {worst[2]:.2g} at position {worst[1]}"
    proven = stepped is not None and off(model.head(stepped)) is None
    if not proven and (worst := off(_in_pieces(fresh, tokens, context))):
        return (
            f"forward gives other logits than the context's state and then steps, in a fresh model: off by "
            f"{worst[2]:.2g} standard deviations at position {worst[1]} (the context ends at {context})"
        )

    positions = torch.arange(time, device=tokens.device)
    first = context if model.reads_context else 1  # the first token that may be changed
    for turn in range(min(4, time - first)):
        # Each row is cut elsewhere, so that few runs see cuts all over the sequence; other rows give the new future.
        places = time - first
        cuts = first + (torch.arange(batch, device=tokens.device) * max(1, places // batch) + turn * 7) % places
        if turn == 0:
            cuts = torch.full_like(cuts, min(context, time - 1))
        past = positions[None] < cuts[:, None]
        changed = torch.where(past, tokens, tokens.roll(turn + 1, 0))
        if worst := off(model(changed, context_length=context), past):
            return (
                f"the logits at position {worst[1]} change by {worst[2]:.2g} standard deviations when tokens from "
                f"{int(cuts[worst[0]])} on are others: they see the future"
            )
    return None


def _in_pieces(models: list[Any], tokens: Tensor, context: int) -> Tensor:
    """Logits of the context as a whole, then steps: two halves of the batch in turn, on two models in turn. Of models
    together, what their heads read, (replicas, batch, time, d_model)."""
    batch = len(tokens)
    types: Types = {}

    def copied(state: Any) -> Any:
        parts: list[Tensor] = []
        check_state(state, device=tokens.device)
        structure = pack(state, parts, types)
        return unpack(structure, iter(parts), types)

    halves = [tokens[: batch // 2], tokens[batch // 2 :]]
    outputs: list[list[Tensor]] = [[], []]
    states: list[Any] = [None, None]
    for i, half in enumerate(halves):
        seen = half[:, :context].clone()
        if models[i].reads_context:
            y, state = models[i].read_context(seen)
        else:
            y, state = models[i].prefill(seen, copied(models[i].init_state(len(half))))
        outputs[i].append(y)
        states[i] = copied(state)
    for t in range(context, tokens.shape[1]):
        for i, half in enumerate(halves):
            y, state = models[(i + t + 1) % 2].step(half[:, t].clone(), states[i])
            outputs[i].append(y.unsqueeze(-2))
            states[i] = copied(state)
    return torch.cat([torch.cat(y, dim=-2) for y in outputs], dim=-3)
