"""How fast the kernels are that a stack of models runs in each step, beside the same in compiled PyTorch:
`python benchmarks/stack_kernels.py`, on a machine with a GPU.

Both are compiled, R = 12 models at once, in training's dtypes. Rows go where those of `kernels.py` go, and are timed as
those are.
"""

import functools
from collections.abc import Callable

import torch
from kernels import Note, arguments, attempt, recorded
from torch import Tensor

from zoology.kernels.add_norm import add_norm
from zoology.kernels.embedding import column_numbers, embedding, row_numbers
from zoology.kernels.gated_short_conv import gated_short_conv
from zoology.kernels.inline import inline
from zoology.kernels.selective_scan import selective_scan
from zoology.kernels.take_rows import take_rows
from zoology.kernels.timing import milliseconds
from zoology.kernels.wkv import wkv

R, B = 12, 256


def beside(note: Note, op: str, shape: str, function: Callable[..., Tensor], given: tuple[Tensor, ...]) -> None:
    """Times of `function(*given, implementation=...)`, for all models at once, and of its gradients by what needs them.

    What has no axis of models, as positions and tokens have none, is shared.
    """
    wanted = [t for t in given if t.requires_grad]
    dims = tuple(0 if t.requires_grad or (t.dtype == torch.int32 and t.dim() > 1) else None for t in given)
    for implementation in ("triton", "reference"):
        torch._dynamo.reset()
        one = functools.partial(function, implementation=implementation)
        run = torch.compile(torch.func.vmap(one, in_dims=dims), fullgraph=True, dynamic=False)
        pull = torch.randn_like(run(*given))

        def both(run: Callable[..., Tensor] = run, pull: Tensor = pull) -> tuple[Tensor, ...]:
            return torch.autograd.grad(run(*given), wanted, pull)

        note(op, shape, "fwd+bwd", implementation, milliseconds(both), "ms")
        with torch.no_grad():
            note(op, shape, "fwd", implementation, milliseconds(functools.partial(run, *given)), "ms")


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype).requires_grad_()


def convolution(note: Note, t: int, d: int, taps: int) -> None:
    given = (normal(R, B, t, d, dtype=torch.bfloat16), normal(R, d, d), normal(R, d), normal(R, d, taps), normal(R, d))
    beside(note, "gated_short_conv", f"R{R}-B{B}-T{t}-D{d}-k{taps}", gated_short_conv, given)


def norm(note: Note, t: int, d: int, added: bool) -> None:
    """A layer's sum and norm, whose sum is read further on; or the norm alone."""
    x, y = (normal(R, B * t, d, dtype=torch.bfloat16) for _ in range(2))

    def function(x: Tensor, *others: Tensor, implementation: str) -> Tensor:
        y, weight, bias = others if added else (None, *others)
        s, u = add_norm(x, y, weight, bias, implementation=implementation)
        return s * u

    given = (x, *((y,) if added else ()), normal(R, d), normal(R, d))
    beside(note, "add_norm", f"R{R}-M{B * t}-D{d}-{'sum' if added else 'alone'}", function, given)


def rows(note: Note, t: int, labels: int, d: int) -> None:
    positions = torch.rand(B, t, device="cuda").argsort(1)[:, :labels].contiguous()
    given = (normal(R, B, t, d, dtype=torch.bfloat16), positions)
    beside(note, "take_rows", f"R{R}-B{B}-T{t}-N{labels}-D{d}", take_rows, given)


def table(note: Note, t: int, d: int) -> None:
    """Embedding with dropout."""
    columns = column_numbers(d, torch.device("cuda"))
    given = (normal(R, 8192, d), torch.randint(8192, (B, t), device="cuda"), row_numbers(columns, R, B, t), columns)
    function = functools.partial(embedding, dtype=torch.bfloat16, dropout=0.1)
    beside(note, "embedding", f"R{R}-N{B * t}-V8192-D{d}-dropout", function, given)


def scan(note: Note, t: int, e: int, n: int) -> None:
    x, b, c = (normal(R, B, t, width, dtype=torch.bfloat16) for width in (e, n, n))
    delta = (0.1 * torch.rand(R, B, t, e, device="cuda")).requires_grad_()
    a = (-torch.rand(R, e, n, device="cuda").exp()).requires_grad_()

    def function(*given: Tensor, implementation: str) -> Tensor:
        return selective_scan(*given, implementation=implementation)[0]

    beside(note, "selective_scan", f"R{R}-B{B}-T{t}-E{e}-N{n}", function, (x, delta, a, b, c, normal(R, e)))


def decayed(note: Note, t: int, d: int) -> None:
    k, v = (normal(R, B, t, d, dtype=torch.bfloat16) for _ in range(2))
    w = torch.rand(R, d, device="cuda").requires_grad_()

    def function(*given: Tensor, implementation: str) -> Tensor:
        return wkv(*given, implementation=implementation)[0]

    beside(note, "wkv", f"R{R}-B{B}-T{t}-D{d}", function, (k, v, w, normal(R, d)))


def measure(note: Note) -> None:
    inline()
    jobs: list[Callable[[], None]] = [
        functools.partial(job, note, *case)
        for job, cases in (
            (convolution, ((256, 64, 3), (64, 64, 3), (256, 128, 3))),
            (norm, ((256, 64, True), (256, 64, False))),
            (rows, ((256, 64, 64), (64, 4, 64))),
            (table, ((256, 64), (64, 64))),
            (scan, ((64, 128, 16), (256, 128, 16), (64, 128, 64))),
            (decayed, ((64, 64), (256, 64))),
        )
        for case in cases
    ]
    attempt(jobs)


if __name__ == "__main__":
    recorded(measure, arguments(__doc__).out)
