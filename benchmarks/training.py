"""How fast many small models are trained on a GPU, beside the usual loop: `python benchmarks/training.py`.

Prints milliseconds per model and step, and ratios, and appends a row for each measurement to
`benchmarks/results/training.csv`. The usual loop is one model at a time, float32, eager, logits at every position,
`loss.item()` in each step, AdamW as torch has it by default. Ours is R replicas of the same model as one, as `fit`
trains them. Both run in one process on the same batches, in turns; medians are of the turns.
"""

import argparse
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from zoology.data import SliceData, load_data
from zoology.record import TrialSpec
from zoology.sweeps.space import Request, expand
from zoology.train import build_model, compute_dtype, full_precision, seeded
from zoology.training.adamw import AdamW
from zoology.training.stack import Stack
from zoology.training.steps import GraphSteps, Steps

SLICES = ((64, 4), (256, 16), (256, 64))
TARGETS = {(64, 4): 0.09, (256, 16): 0.27, (256, 64): 0.35}
BATCH, VOCABULARY, TURNS = 256, 8192, 5
RESULTS = Path(__file__).parent / "results" / "training.csv"


def spec_of(architecture: str, d_model: int, seq_len: int, num_pairs: int, settings: dict[str, Any]) -> TrialSpec:
    """A trial of the papers' recipe on one slice."""
    (spec,) = expand(
        Request(
            architectures=(architecture,),
            settings={key: (value,) for key, value in settings.items()},
            d_model=(d_model,),
            task_params={"vocab_size": (VOCABULARY,), "seq_len": (seq_len,), "num_pairs": (num_pairs,)},
            scale="paper",
            train_examples=BATCH * 8,
            test_examples=BATCH,
            reference=False,
            grid=False,
        )
    )
    return spec


def usual_loop(spec: TrialSpec, part: SliceData, device: torch.device) -> Callable[[int], None]:
    """Some steps of the loop that public code has."""
    with seeded(0, device):
        model = build_model(spec, part.task.vocab_size).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    labels = torch.from_numpy(part.task.solve(part.tokens.cpu().numpy())).long().to(device)
    context = part.task.prompt_length
    model.train()

    def run(steps: int) -> None:
        for step in range(steps):
            rows = slice(step % 8 * BATCH, (step % 8 + 1) * BATCH)
            optimiser.zero_grad()
            tokens = part.tokens[rows]
            logits = model(tokens, None, context)
            loss = F.cross_entropy(logits.flatten(0, 1), labels[rows].flatten())
            loss.backward()
            optimiser.step()
            loss.item()

    return run


def stacked_steps(
    spec: TrialSpec, part: SliceData, device: torch.device, replicas: int, compiled: bool = True
) -> tuple[Callable[[int], None], Steps]:
    """Some steps of ours, and what takes them."""
    models = []
    for seed in range(replicas):
        with seeded(seed, device):
            models.append(build_model(spec, part.task.vocab_size).to(device))
    stack = Stack(models, compute_dtype("auto", device))
    optimiser = AdamW(stack, [1e-3] * replicas, 0.1, 100_000, 0.0)
    dropout = spec.training.embedding_dropout
    steps = (
        GraphSteps(stack, optimiser, dropout, compiled) if device.type == "cuda" else Steps(stack, optimiser, dropout)
    )
    batches = [torch.arange(i * BATCH, (i + 1) * BATCH, device=device) for i in range(8)]
    stack.template.train()

    def run(count: int) -> None:
        for step in range(count):
            steps(part, batches[step % 8])

    return run, steps


def milliseconds(run: Callable[[int], None], steps: int) -> float:
    """Wall time of a step, the device waited for."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run(steps)
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps * 1e3


def measure(architecture: str, d_model: int, shape: tuple[int, int], replicas: int, settings: dict[str, Any]) -> dict:
    """One row: both loops on one slice."""
    device = torch.device("cuda")
    spec = spec_of(architecture, d_model, *shape, settings)
    part = load_data(spec).train[0].to(device)
    usual = usual_loop(spec, part, device)
    begin = time.perf_counter()
    ours, steps = stacked_steps(spec, part, device, replicas)
    ours(1)
    torch.cuda.synchronize()
    compiling = time.perf_counter() - begin
    usual(3)
    ours(8)
    pairs = [(milliseconds(usual, 8), milliseconds(ours, 24) / replicas) for _ in range(TURNS)]
    one, other = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {
        "architecture": architecture,
        "d_model": d_model,
        "T": shape[0],
        "N": shape[1],
        "replicas": replicas,
        "usual ms": round(one, 3),
        "ours ms": round(other, 4),
        "ratio": round(one / other, 1),
        "first step s": round(compiling, 1),
        "memory GB": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "notes": "; ".join(steps.notes),
    }


def profile(architecture: str, d_model: int, shape: tuple[int, int], replicas: int, settings: dict[str, Any]) -> str:
    """Where the time of a step goes, kernel by kernel."""
    device = torch.device("cuda")
    spec = spec_of(architecture, d_model, *shape, settings)
    part = load_data(spec).train[0].to(device)
    run, _ = stacked_steps(spec, part, device, replicas)
    run(8)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        run(5)
        torch.cuda.synchronize()
    return found.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="*", default=["attention", "based"])
    parser.add_argument("--d-model", nargs="*", type=int, default=[64])
    parser.add_argument("--replicas", type=int, default=12)
    parser.add_argument("--slices", nargs="*", default=[f"{t}x{n}" for t, n in SLICES], help="T x N, such as 256x64")
    parser.add_argument("--profile", type=Path, help="also write where the time goes, to this folder")
    options = parser.parse_args()
    rows = []
    with full_precision():
        for architecture in options.arch:
            settings = {"window": 0, "feature_dim": 16} if architecture == "based" else {}
            for d_model in options.d_model:
                for text in options.slices:
                    t, n = map(int, text.split("x"))
                    torch.cuda.reset_peak_memory_stats()
                    torch._dynamo.reset()
                    try:
                        row = measure(architecture, d_model, (t, n), options.replicas, settings)
                        rows.append(row)
                        print(row, flush=True)
                        if options.profile:
                            table = profile(architecture, d_model, (t, n), options.replicas, settings)
                            (options.profile / f"{architecture}-{d_model}-{text}.txt").write_text(table)
                    except Exception:
                        print(architecture, d_model, text, traceback.format_exc()[-3000:], flush=True)
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
