"""How fast the Triton kernels are, beside compiled PyTorch: `python benchmarks/kernels.py`, on a machine with a GPU.

Prints a table and appends a row for each measurement to `benchmarks/results/kernels.csv`, with the machine, the
versions and the date. A time is the median over replays of a CUDA graph, in training but for what is called eval.
`--tune` times other block sizes instead, and writes no file.
"""

import argparse
import functools
import itertools
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import append, machine
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from zoology.kernels.embedding import triton as embedding_triton
from zoology.kernels.linear_attention import LinearAttentionState, linear_attention_step
from zoology.kernels.linear_cross_entropy import linear_cross_entropy
from zoology.kernels.linear_cross_entropy import triton as head_triton
from zoology.kernels.short_conv import short_conv
from zoology.kernels.sliding_window_attention import sliding_window_attention
from zoology.kernels.timing import milliseconds

COLUMNS = (
    "date",
    "op",
    "shape",
    "what",
    "method",
    "value",
    "unit",
    "processor",
    "python",
    "torch",
    "triton",
    "zoology",
)
RESULTS = Path(__file__).parent / "results" / "kernels.csv"
IDS = 8192
COMPILING = 70
"""Seconds after which no more shapes are compiled for comparison, the smaller ones at the end."""
STARTED = time.monotonic()


def peak(function: Callable[[], object]) -> float:
    """The most memory that a call takes beyond its inputs, in MiB."""
    function()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def head_inputs(r: int, m: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """As a sweep has them: rows in bfloat16, the table in float32, labels that R models share."""
    hidden = torch.randn(r, m, d, device="cuda").bfloat16().requires_grad_()
    weight = (torch.randn(r, IDS, d, device="cuda") * d**-0.5).requires_grad_()
    return hidden, weight, torch.randint(IDS, (1, m), device="cuda")


def pytorch_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What is compiled for comparison."""
    logits = (hidden @ weight.to(hidden.dtype).mT).float()
    labels = targets.expand(logits.shape[:-1])
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return loss, logits.argmax(-1) == labels


def backward(function: Callable[..., tuple[Tensor, Tensor]], *args: Tensor) -> tuple[Tensor, ...]:
    loss, _ = function(*args)
    return torch.autograd.grad(loss.mean(), args[:2])


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


Note = Callable[..., None]


def head(note: Note, rate: float, r: int, m: int, d: int) -> None:
    """One shape of `linear_cross_entropy`: times, memory, and errors of the gradients of the first replica."""
    op, shape, times = "linear_cross_entropy", f"R{r}-M{m}-V{IDS}-D{d}", {}
    args = head_inputs(r, m, d)
    ours = functools.partial(linear_cross_entropy, implementation="triton")
    methods = {"triton": ours}
    if time.monotonic() - STARTED < COMPILING:
        torch._dynamo.reset()
        methods["compiled"] = torch.compile(pytorch_head, dynamic=False)
    else:
        print(f"{op:<22} {shape:<28} compiled PyTorch left out: {COMPILING} s are over", flush=True)
    for method, function in methods.items():
        for what, run, products in (("fwd", function, 1), ("fwd+bwd", functools.partial(backward, function), 3)):
            times[method, what] = milliseconds(functools.partial(run, *args))
            note(op, shape, what, method, times[method, what], "ms")
            share = 100 * products * 2 * r * m * IDS * d / rate / times[method, what]
            note(op, shape, f"{what} products", method, share, "% of matmul")
        note(op, shape, "memory", method, peak(functools.partial(backward, function, *args)), "MiB")
    with torch.no_grad():
        note(op, shape, "eval", "triton", milliseconds(functools.partial(ours, *args)), "ms")
    if "compiled" in methods:
        for what in ("fwd", "fwd+bwd"):
            note(op, shape, what, "ratio", times["compiled", what] / times["triton", what], "x compiled")
    hidden, weight, targets = args[0][:1, :1024].detach(), args[1][:1].detach(), args[2][:, :1024]
    reference = functools.partial(linear_cross_entropy, implementation="reference")
    rounded = weight.bfloat16().double()
    want = backward(reference, hidden.double().requires_grad_(), rounded.requires_grad_(), targets)
    for method, function in (("triton", ours), ("reference", reference)):
        got = backward(function, hidden.requires_grad_(), weight.requires_grad_(), targets)
        for name, a, b in zip(("error of dhidden", "error of dweight"), got, want, strict=True):
            note(op, shape, name, method, relative(a, b), "relative")


def table(note: Note, kind: str, r: int, n: int, d: int) -> None:
    """The gradient of a table of embeddings: ours, and index_add, which is not deterministic."""
    tokens = torch.randint(IDS, (n,), device="cuda")
    if kind == "fillers":
        tokens[torch.rand(n, device="cuda") < 0.8] = 0
    elif kind == "one-id":
        tokens.zero_()
    grad = torch.randn(r, n, d, device="cuda").bfloat16()
    shape = f"R{r}-N{n}-V{IDS}-D{d}-{kind}"
    methods = {
        "triton": lambda: embedding_triton.launch(grad, tokens.unsqueeze(0), IDS),
        "index_add": lambda: torch.zeros(r, IDS, d, device="cuda").index_add_(1, tokens, grad.float()),
    }
    for method, function in methods.items():
        note("embedding", shape, "bwd", method, milliseconds(function), "ms")
    sort = milliseconds(lambda: torch.sort(tokens.to(torch.int32).unsqueeze(0), dim=1, stable=True))
    note("embedding", shape, "of which sort", "triton", sort, "ms")


def share_of_copy(moved: int, ms: float) -> float:
    """How near to a copy's speed something is that must move so many bytes, in per cent."""
    source = torch.empty(moved // 2, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return 100 * milliseconds(lambda: target.copy_(source)) / ms


def convolution(note: Note, r: int, b: int, t: int, d: int, k: int) -> None:
    """`short_conv` alone, and with a gate, which compiled PyTorch makes one pass of; k taps of each replica's own."""
    op, shape = "short_conv", f"R{r}-B{b}-T{t}-D{d}-k{k}"
    x, gate, grad = (torch.randn(r, b, t, d, device="cuda").bfloat16() for _ in range(3))
    weight = torch.randn(r, d, k, device="cuda")
    given = tuple(a.requires_grad_() for a in (x, weight, gate))

    def alone(x: Tensor, weight: Tensor, gate: Tensor, implementation: str) -> Tensor:
        return torch.func.vmap(lambda x, w: short_conv(x, w, implementation=implementation)[0])(x, weight)

    def gated(x: Tensor, weight: Tensor, gate: Tensor, implementation: str) -> Tensor:
        return gate * alone(x, weight, gate, implementation)

    for function, passes in ((alone, (2, 5)), (gated, (3, 8))):
        for implementation in ("triton", "reference"):
            torch._dynamo.reset()
            run = torch.compile(functools.partial(function, implementation=implementation), dynamic=False)
            wanted = given[: 2 if function is alone else 3]
            both = functools.partial(lambda run, wanted: torch.autograd.grad(run(*given), wanted, grad), run, wanted)
            with torch.no_grad():
                times = [milliseconds(functools.partial(run, *given))]
            times.append(milliseconds(both))
            for what, time_, moved in zip(("fwd", "fwd+bwd"), times, passes, strict=True):
                what = what if function is alone else f"gated {what}"
                note(op, shape, what, implementation, time_, "ms")
                note(op, shape, what, implementation, share_of_copy(moved * x.nbytes, time_), "% of copy")


@torch.no_grad()
def attention_step(note: Note, b: int, h: int, f: int, dv: int) -> None:
    """One token of Based: the state, in float32, is read and written once."""
    op, shape = "linear_attention_step", f"B{b}-H{h}-f{f}-dv{dv}"
    q, k, v = (torch.rand(b, h, n, device="cuda").bfloat16() for n in (f, f, dv))
    features = (f + 1) * (f + 2) // 2
    state = LinearAttentionState(
        torch.rand(b, h, features, dv, device="cuda"), torch.rand(b, h, features, device="cuda")
    )
    for method, implementation in (("triton", "triton"), ("compiled", "reference")):
        run = functools.partial(
            linear_attention_step, q, k, v, state, feature_map="taylor", implementation=implementation
        )
        ms = milliseconds(run if method == "triton" else torch.compile(run, dynamic=False))
        note(op, shape, "step", method, ms, "ms")
        note(op, shape, "step", method, share_of_copy(2 * (state.kv.nbytes + state.normaliser.nbytes), ms), "% of copy")


def window(note: Note, b: int, h: int, t: int, d: int, w: int) -> None:
    """Attention over a window, at a sweep's shapes: ours, the reference compiled, FlexAttention compiled, and
    FlashAttention over all of the past, which is what a kernel without windows does."""
    op, shape = "sliding_window_attention", f"B{b}-T{t}-H{h}-d{d}-w{w}"
    given = tuple(torch.randn(b, t, h, d, device="cuda").bfloat16().requires_grad_() for _ in range(3))
    pull = torch.randn_like(given[0])
    mask = create_block_mask(lambda b, h, q, k: (q >= k) & (q - k < w), None, None, t, t, device="cuda")

    def flex(*qkv: Tensor) -> Tensor:
        return flex_attention(*(x.transpose(1, 2) for x in qkv), block_mask=mask).transpose(1, 2)

    def flash(*qkv: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv), is_causal=True).transpose(1, 2)

    def ours(*qkv: Tensor, implementation: str) -> Tensor:
        return sliding_window_attention(*qkv, window=w, implementation=implementation)[0]

    methods: dict[str, Callable[..., Tensor]] = {
        "triton": functools.partial(ours, implementation="triton"),
        "flash, no window": flash,
        "reference": torch.compile(functools.partial(ours, implementation="reference"), dynamic=False),
        "flex": torch.compile(flex, dynamic=False),
    }
    torch._dynamo.reset()
    for method, function in methods.items():
        with torch.no_grad():
            note(op, shape, "fwd", method, milliseconds(functools.partial(function, *given)), "ms")
        both = functools.partial(lambda function: torch.autograd.grad(function(*given), given, pull), function)
        note(op, shape, "fwd+bwd", method, milliseconds(both), "ms")


def measure(note: Note) -> None:
    """Every row. One that fails says so, and the others go on."""
    jobs: list[Callable[[], None]] = []
    rate = matmul()
    note("linear_cross_entropy", "8192^3", "matmul", "torch", rate / 1e9, "TFLOP/s")
    for b, h in ((128, 28), (1, 28)):
        jobs.append(functools.partial(attention_step, note, b, h, 16, 64))
    heads = [
        functools.partial(head, note, rate, r, m, d) for d in (64, 128) for m in (16384, 4096, 1024) for r in (1, 12)
    ]
    shapes = ((1, 8, 2048, 1024, 3), (12, 256, 64, 64, 3), (1, 8, 2048, 1024, 4))
    convolutions = [functools.partial(convolution, note, *shape) for shape in shapes]
    jobs += [*heads[:2], *convolutions, *heads[2:]]  # what is asked after most comes first
    for kind, n in itertools.product(("uniform", "fillers", "one-id"), (16384, 65536)):
        jobs.append(functools.partial(table, note, kind, 12, n, 64))
    for b, h, t, d, w in ((3072, 1, 64, 64, 16), (3072, 4, 64, 16, 16), (3072, 1, 256, 64, 64), (3072, 4, 256, 16, 64)):
        jobs.append(functools.partial(window, note, b, h, t, d, w))
    attempt(jobs)


def attempt(jobs: list[Callable[[], None]]) -> None:
    for job in jobs:
        try:
            job()
        except Exception:
            print(f"failed: {job.args}: {traceback.format_exc().strip().splitlines()[-1]}", flush=True)
        torch.cuda.empty_cache()


def tune() -> None:
    """Times of the two kernels of the head for other block sizes, R = 12, M = 16384; what does not compile says so."""

    def each(kind: str, d: int, blocks: head_triton.Blocks) -> None:
        h, w, t = head_inputs(12, 16384, d)
        h, w = h.detach(), w.detach().bfloat16()
        loss, _, log_sum, _ = head_triton.launch_forward(h, w, t, -100, True)
        if kind == "forward":
            run = functools.partial(head_triton.launch_forward, h, w, t, -100, True, blocks)
        else:
            by_loss = head_triton.factors(torch.ones_like(loss), t, loss, log_sum, -100, h.dtype)
            run = functools.partial(head_triton.launch_backward, by_loss, h, w, t, log_sum, w.dtype, blocks)
        print(f"D{d} {kind:<8} {tuple(blocks)} {milliseconds(run, 7):.3f} ms", flush=True)

    jobs = []
    for d, (rows, ids), (warps, stages) in itertools.product(
        (64, 128), ((64, 32), (64, 64), (128, 32), (128, 64), (64, 128)), ((4, 2), (4, 3), (8, 3))
    ):
        jobs.append(functools.partial(each, "forward", d, head_triton.Blocks(rows, ids, warps, stages)))
    for d, (rows, ids), (warps, stages) in itertools.product(
        (64, 128), ((32, 64), (64, 64), (32, 128), (64, 128), (128, 64)), ((4, 2), (4, 3), (8, 3))
    ):
        jobs.append(functools.partial(each, "backward", d, head_triton.Blocks(rows, ids, warps, stages)))
    attempt(jobs)


def matmul() -> float:
    """Operations of a product of square bfloat16 matrices in a millisecond."""
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    return 2 * 8192**3 / milliseconds(lambda: a @ b)


def recorded(measure: Callable[[Note], None], path: Path) -> None:
    """Print what is measured, and put it with the GPU and the versions at the end of a results file, row by row."""
    made_on = machine("torch", "triton") | {"processor": torch.cuda.get_device_name()}
    common = {key: made_on[key] for key in COLUMNS if key in made_on}

    def note(op: str, shape: str, what: str, method: str, value: float, unit: str) -> None:
        row = {"op": op, "shape": shape, "what": what, "method": method, "value": f"{value:.4g}", "unit": unit}
        append([row], common, COLUMNS, path)
        print(f"{op:<22} {shape:<32} {what:<18} {method:<14} {value:>10.4g} {unit}", flush=True)

    measure(note)
    print(f"rows appended to {path}")


def arguments(doc: str | None, **switches: str) -> argparse.Namespace:
    """The command line of a benchmark on a GPU: `--out`, and switches with their help. It seeds torch."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"default {RESULTS}")
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device: the kernels run on a GPU")
    torch.manual_seed(0)
    return given


def main() -> None:
    given = arguments(__doc__, tune="time other block sizes, and write no file")
    if given.tune:
        return tune()
    recorded(measure, given.out)
    return None


if __name__ == "__main__":
    main()
