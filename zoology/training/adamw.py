"""AdamW over a stack of models, with a learning rate for each, and the schedule of the learning rate.

Sources: Adam, arXiv:1412.6980; decoupled weight decay, arXiv:1711.05101. Constants are torch's defaults.

Letters: R replicas, P parameters of one model.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoology.registry import InputError
from zoology.training.stack import Stack

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class AdamW:
    """The optimiser of all replicas: a step is a handful of operations over the flat buffer, whatever R.

    Matrices decay. Vectors (norms, biases, decay rates, skip gains) do not, nor does a parameter that asks not to. A
    mixer's hints, as H3 and Mamba spell them, are honoured: `parameter._no_weight_decay = True`, and
    `parameter._optim = {"lr": 1e-3, "weight_decay": 0.0}`.

    Attributes:
        mean, square: (R, P) running means of the gradient and of its square.
        count: () int64, steps taken.

    Raises:
        InputError: a hint is about something else.
    """

    def __init__(self, stack: Stack, learning_rates: Sequence[float], weight_decay: float, steps: int, warmup: float):
        flat = stack.flat
        parameters = dict(stack.template.named_parameters())
        own, follow, decay = [], [], []
        for entry in stack.entries:
            parameter = parameters[entry.name]
            hints = getattr(parameter, "_optim", {})
            if unknown := set(hints) - {"lr", "weight_decay"}:
                raise InputError(f"parameter {entry.name}: _optim has {sorted(unknown)}; lr and weight_decay are known")
            free = parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False)
            own.append(hints.get("lr", 0.0))
            follow.append(0.0 if "lr" in hints else 1.0)
            decay.append(hints.get("weight_decay", 0.0 if free else weight_decay))
        device = flat.device
        sizes = torch.tensor([entry.stop - entry.start for entry in stack.entries])
        self.flat = flat
        self.mean, self.square = torch.zeros_like(flat), torch.zeros_like(flat)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.rates = torch.tensor(learning_rates, dtype=flat.dtype, device=device).unsqueeze(1)
        self.own, self.follow, self.decay = (
            torch.tensor(values, dtype=flat.dtype).repeat_interleave(sizes).to(device)
            for values in (own, follow, decay)
        )
        table = [learning_rate_at(step, steps, warmup) for step in range(steps)]
        self.schedule = torch.tensor(table, dtype=flat.dtype, device=device)

    def peak(self) -> Tensor:
        """(R, P) the learning rate of every parameter at the schedule's peak."""
        return self.rates * self.follow + self.own

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """What `update` reads and does not change, in its order."""
        return self.schedule, self.rates, self.own, self.follow, self.decay

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step down the gradients, given as the stack's leaves are. Reads nothing back to the host."""
        gradient = flat_gradient(gradients, self.flat)
        update(gradient, self.flat, self.mean, self.square, self.count, *self.constants)

    def keep(self, stack: Stack, replicas: Tensor) -> None:
        """Go on with some of the replicas, which the stack now consists of."""
        self.flat = stack.flat
        self.mean, self.square, self.rates = (x[replicas] for x in (self.mean, self.square, self.rates))


def flat_gradient(gradients: Sequence[Tensor], like: Tensor) -> Tensor:
    """Gradients, each (R, *shape), as one (R, P).

    The first is apart, the embedding's, most of it all: of a choice of two a compiler makes a part of what reads them,
    of a choice of many a copy.
    """
    first, *others = (g.flatten(1) if g.dim() > 1 else g.unsqueeze(1) for g in gradients)
    return torch.cat([first, *([torch.cat(others, dim=1)] if others else [])], dim=1).to(like.dtype)


def update(
    gradient: Tensor,
    flat: Tensor,
    mean: Tensor,
    square: Tensor,
    count: Tensor,
    schedule: Tensor,
    rates: Tensor,
    own: Tensor,
    follow: Tensor,
    decay: Tensor,
) -> None:
    """AdamW in place, as tensor code without a look at any value, so that it compiles and can be captured."""
    rate = schedule[count.view(1)] * (rates * follow + own)  # a plain index of a single number would wait for it
    count += 1
    wide = count.double()
    mean.lerp_(gradient, 1 - BETA1)
    square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    # The corrections of the running means for having started from 0: 1 - beta^t, in float64 as beta^t is all but 1.
    first = (1 - BETA1**wide).to(flat.dtype)
    second = (1 - BETA2**wide).sqrt().to(flat.dtype)
    flat.mul_(1 - rate * decay)
    flat.sub_(rate / first * mean / (square.sqrt() / second + EPS))


def learning_rate_at(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at step 0, 1, ..., steps - 1.

    A linear rise over `warmup` of the steps, the peak (1, reached once), then a cosine that would be 0 at `steps`.
    """
    rise = min(round(warmup * steps), steps - 1)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))
