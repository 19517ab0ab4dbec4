"""How fast linear attention is on a GPU, beside what else is public: `python benchmarks/linear_attention.py`.

Prints a table and appends a row for each measurement to `benchmarks/results/kernels.csv`, as `kernels.py` does. A time
is the median over replays of a CUDA graph. Each method has its error against float64 on one row of the batch; the bytes
that must be read and written (each input once, each output once), and the share of the bandwidth of a copy that this
makes of its time; and the share of the rate of a large product that the recurrence's own products make of it, which are
2 F dv for each token forward and three times as many with the backward pass. Peers are compiled PyTorch; attention
itself, of FlashAttention and of cuDNN, on heads as wide as the values; and the kernels of flash-linear-attention, where
it is installed.

Shapes are B-T-H-f-dv: of sweeps, where B counts the rows of all replicas, and of the papers' larger models.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from kernels import Note, arguments, attempt, matmul, recorded, relative
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoology.kernels.linear_attention import linear_attention
from zoology.kernels.timing import milliseconds

OP = "linear_attention"
COMPILING = 60
"""Seconds after which no more shapes are compiled for comparison."""
STARTED = time.monotonic()


class Case(NamedTuple):
    """A shape, and the function: Based normalises Taylor's weights, RetNet and Mamba-2 have a decay and do not."""

    batch: int
    time: int
    heads: int
    f: int
    dv: int
    kind: str
    sweep: bool
    backward: bool = True

    def __str__(self) -> str:
        return f"B{self.batch}-T{self.time}-H{self.heads}-f{self.f}-dv{self.dv}-{self.kind}"


CASES = (
    # Sweeps' first: beside them PyTorch is compiled, for which there is time only at the beginning.
    Case(3072, 64, 1, 16, 64, "based", True),
    Case(1536, 128, 1, 16, 64, "based", True),
    Case(768, 256, 1, 16, 64, "based", True),
    Case(768, 256, 2, 32, 64, "retnet", True),
    Case(768, 256, 4, 16, 16, "mamba2", True),
    Case(768, 256, 1, 64, 128, "mamba2", True),
    Case(8, 2048, 16, 16, 64, "based", False),
    Case(2, 8192, 16, 16, 64, "based", False),
    Case(8, 2048, 16, 64, 64, "mamba2", False),
    Case(2, 8192, 16, 64, 64, "mamba2", False),
    Case(16, 32768, 16, 16, 64, "based", False, backward=False),
)


class Method(NamedTuple):
    """What computes the function, and what it is given."""

    name: str
    function: Callable[..., Tensor]
    given: list[Tensor]
    pull: Tensor

    def __repr__(self) -> str:
        return self.name


def inputs(case: Case) -> list[Tensor]:
    """q, k, v in bfloat16, and log decays of a head, or of each token too."""
    shape = (case.batch, case.time, case.heads)
    q, k = (torch.randn(*shape, case.f, device="cuda").bfloat16() for _ in range(2))
    given = [q, k, torch.randn(*shape, case.dv, device="cuda").bfloat16()]
    if case.kind != "based":
        given.append(torch.rand(shape if case.kind == "mamba2" else shape[2:], device="cuda") * -0.1)
    return [x.requires_grad_() for x in given]


def ours(case: Case, *given: Tensor, implementation: str) -> Tensor:
    based = case.kind == "based"
    with torch.autocast("cuda", torch.bfloat16, enabled=given[0].dtype == torch.bfloat16):
        o, _ = linear_attention(
            *given[:3],
            feature_map="taylor" if based else "identity",
            normalise=based,
            log_decay=None if based else given[3],
            implementation=implementation,
        )
    return o


def attention(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def public(case: Case) -> dict[str, Callable[..., Tensor]]:
    """The kernels of flash-linear-attention that compute the same function, by name."""
    try:
        from fla.ops.based import fused_chunk_based, parallel_based
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return {}
    if case.kind == "based":
        return {"fla-parallel": parallel_based, "fla-chunk": fused_chunk_based}
    if case.kind == "mamba2":
        return {"fla-simple-gla": lambda q, k, v, g: chunk_simple_gla(q, k, v, g, scale=1.0)[0]}
    return {}


def copying() -> float:
    """Bytes that a copy reads and writes in a millisecond."""
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source))


def operations(case: Case) -> int:
    """Of the recurrence, forward: each token adds F dv products to the state, and reads as many."""
    features = (case.f + 1) * (case.f + 2) // 2 if case.kind == "based" else case.f
    return 4 * case.batch * case.time * case.heads * features * case.dv


def measure_case(note: Note, bandwidth: float, rate: float, case: Case) -> None:
    given = inputs(case)
    pull = torch.randn_like(given[2])
    methods = [Method("triton", functools.partial(ours, case, implementation="triton"), given, pull)]
    if case.sweep and time.monotonic() - STARTED < COMPILING:
        torch._dynamo.reset()
        reference = functools.partial(ours, case, implementation="reference")
        methods.append(Method("compiled", torch.compile(reference, dynamic=False), given, pull))
    if not case.sweep:
        methods += [Method(name, function, given, pull) for name, function in public(case).items()]
        heads = [torch.randn(case.batch, case.heads, case.time, case.dv, device="cuda").bfloat16() for _ in range(4)]
        for name, backend in (("sdpa-flash", SDPBackend.FLASH_ATTENTION), ("sdpa-cudnn", SDPBackend.CUDNN_ATTENTION)):
            leaves = [x.requires_grad_() for x in heads[:3]]
            methods.append(Method(name, functools.partial(attention, backend), leaves, heads[3]))
    exact = errors_of(case, given, pull)
    times: dict[tuple[str, str], float] = {}
    jobs: list[Callable[[], None]] = []
    for method in methods:
        jobs.append(functools.partial(measure_method, note, case, method, bandwidth=bandwidth, rate=rate, times=times))
        if method.given is given:
            jobs.append(functools.partial(measure_error, note, case, method, exact=exact))
    attempt(jobs)
    for method, what in [key for key in times if key[0] != "triton"]:
        note(OP, str(case), what, "ratio", times[method, what] / times["triton", what], f"x {method}")


def measure_method(
    note: Note, case: Case, method: Method, *, bandwidth: float, rate: float, times: dict[tuple[str, str], float]
) -> None:
    """Milliseconds, bytes and their share of a copy's, products and theirs of a product's, both passes."""
    name, function, given, pull = method
    read = sum(x.numel() * x.element_size() for x in given)
    out = pull.numel() * pull.element_size()
    runs: dict[str, tuple[Callable[[], Any], int, int]] = {"fwd": (lambda: function(*given), read + out, 1)}
    if case.backward:
        runs["fwd+bwd"] = (lambda: torch.autograd.grad(function(*given), given, pull), 3 * read + 2 * out, 3)
    for what, (run, moved, passes) in runs.items():
        times[name, what] = milliseconds(run)
        note(OP, str(case), what, name, times[name, what], "ms")
        note(OP, str(case), f"{what} bytes", name, moved / 2**20, "MiB")
        note(OP, str(case), f"{what} bandwidth", name, 100 * moved / bandwidth / times[name, what], "% of copy")
        if not name.startswith("sdpa"):  # which compute another function
            share = 100 * passes * operations(case) / rate / times[name, what]
            note(OP, str(case), f"{what} products", name, share, "% of matmul")


def errors_of(case: Case, given: list[Tensor], pull: Tensor) -> list[Tensor]:
    """The output and gradients of one row of the batch, in float64."""
    row = [x.detach()[: None if x.dim() == 1 else 1].double().requires_grad_() for x in given]
    o = ours(case, *row, implementation="reference")
    return [o.detach(), *(torch.autograd.grad(o, row, pull[:1].double()) if case.backward else ())]


def measure_error(note: Note, case: Case, method: Method, *, exact: list[Tensor]) -> None:
    """Relative errors of the output and the gradients of q, k and v."""
    o = method.function(*method.given)
    got = (o, *(torch.autograd.grad(o, method.given, method.pull)[:3] if case.backward else ()))
    for what, a, b in zip(("o", "dq", "dk", "dv"), got, exact, strict=False):
        note(OP, str(case), f"error of {what}", method.name, relative(a.detach()[:1], b), "relative")


def measure(note: Note) -> None:
    """Every row. One that fails says so, and the others go on."""
    bandwidth = copying()
    note(OP, "2 GiB", "copy", "torch", bandwidth / 1e9, "TB/s")
    rate = matmul()
    note(OP, "8192^3", "matmul", "torch", rate / 1e9, "TFLOP/s")
    attempt([functools.partial(measure_case, note, bandwidth, rate, case) for case in CASES])


if __name__ == "__main__":
    recorded(measure, arguments(__doc__).out)
