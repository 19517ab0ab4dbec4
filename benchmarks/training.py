"""How fast many small models are trained on a GPU, beside the usual loop: `python benchmarks/training.py`.

Prints milliseconds per model and step, and ratios, and appends a row to `benchmarks/results/training.csv` as soon as it
is measured. Compiling takes most of the time: `--warm` does only that, for as many processes side by side as there are
processors, and the measurements afterwards find it done. The usual loop is one model at a time, float32, eager, logits
at every position, `loss.item()` in each step, AdamW as torch has it by default. Ours is R replicas of the same model as
one, as `fit` trains them. Both run in one process on the same batches, in turns; medians are of the turns.
"""

import argparse
import itertools
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, append, machine

from zoology.data import SliceData, TrialData, batches, load_data, steps_per_epoch
from zoology.record import TrialSpec
from zoology.sweeps.space import Request, expand, known_architectures
from zoology.train import build_model, compute_dtype, fit, full_precision, seeded
from zoology.training.adamw import AdamW, learning_rate_at
from zoology.training.stack import Stack
from zoology.training.steps import GraphSteps, Steps

SLICES = ((64, 4), (256, 16), (256, 64))
BATCH, VOCABULARY, TURNS = 256, 8192, 5
COLUMNS = (
    *("date", "architecture", "d_model", "T", "N", "replicas", "usual ms", "ours ms", "ratio", "first step s"),
    *("memory GB", "notes", "gpu", "processor", "cpus", "python", "torch", "triton", "zoology"),
)


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


def measure(
    architecture: str, d_model: int, shape: tuple[int, int], replicas: int, settings: dict[str, Any], warm: bool = False
) -> dict[str, Any]:
    """One row: both loops on one slice. `warm` only compiles."""
    device = torch.device("cuda")
    spec = spec_of(architecture, d_model, *shape, settings)
    part = load_data(spec).train[0].to(device)
    begin = time.perf_counter()
    ours, steps = stacked_steps(spec, part, device, replicas)
    ours(1)
    torch.cuda.synchronize()
    compiling = time.perf_counter() - begin
    if warm:
        return {"architecture": architecture, "first step s": round(compiling, 1)}
    usual = usual_loop(spec, part, device)
    usual(2)
    ours(8)
    few, many = (max(1, min(most, int(400 / milliseconds(run, 1)))) for run, most in ((usual, 8), (ours, 24)))
    pairs = [(milliseconds(usual, few), milliseconds(ours, many) / replicas) for _ in range(TURNS)]
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


def plain_accuracy(spec: TrialSpec, seed: int, device: torch.device) -> float:
    """Test accuracy of one model after the usual loop: float32, eager, at the trial's recipe and on its batches."""
    data = TrialData(*(tuple(part.to(device) for part in split) for split in load_data(spec)))
    training = spec.training
    (rate,) = training.learning_rates
    with seeded(seed, device):
        model = build_model(spec, data.vocab_size).to(device).train()
        matrices = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=training.weight_decay)
        steps = training.epochs * steps_per_epoch(data.train, training.batch_size)
        order = torch.Generator().manual_seed(training.data_seed)
        step = 0
        for _ in range(training.epochs):
            for part, rows in batches(data.train, training.batch_size, order):
                for group in optimiser.param_groups:
                    group["lr"] = rate * learning_rate_at(step, steps, training.warmup)
                tokens, positions, targets = part.rows(rows)
                logits = model(tokens, positions, part.task.prompt_length)
                optimiser.zero_grad()
                F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
                optimiser.step()
                step += 1
    model.eval()
    right = labels = 0
    with torch.no_grad():
        for part in data.test:
            logits = model(part.tokens, part.positions, part.task.prompt_length)
            right += (logits.argmax(-1) == part.targets).sum().item()
            labels += part.targets.numel()
    return right / labels


def equal_results(architecture: str, settings: dict[str, Any], seeds: int, device: torch.device) -> dict[str, Any]:
    """Whether replicas trained as one in bfloat16 reach what the usual float32 loop reaches, seed by seed."""
    request = Request(
        architectures=(architecture,),
        settings={key: (value,) for key, value in settings.items()},
        d_model=(64,),
        task_params={"vocab_size": (VOCABULARY,), "seq_len": (64,), "num_pairs": (4,)},
        scale="paper",
        train_examples=100_000,
        training={"learning_rates": (10**-2.5,), "seeds": tuple(range(seeds)), "epochs": 3, "validate_every": 1170},
        reference=False,
        grid=False,
    )
    (spec,) = expand(request)
    plain = [plain_accuracy(spec, seed, device) for seed in range(seeds)]
    result = fit(spec, device)
    stacked = [score.accuracy_last for r in result.replicas for score in r.scores if score.split == "test"]
    return {
        "architecture": architecture,
        "plain": [round(100 * x, 2) for x in plain],
        "stacked": [round(100 * (x or 0), 2) for x in stacked],
    }


def whole_trial(architecture: str, settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Wall time of one trial of the papers' recipe: four learning rates, three seeds, 32 epochs, seven test slices."""
    request = Request(
        architectures=(architecture,),
        settings={key: (value,) for key, value in settings.items()},
        d_model=(64,),
        scale="paper",
        training={"seeds": (0, 1, 2)},
        reference=False,
        grid=False,
    )
    (spec,) = expand(request)
    begin = time.perf_counter()
    result = fit(spec, device)
    seconds = time.perf_counter() - begin
    return {"architecture": architecture, "wall s": round(seconds, 1), **result.timings, "notes": result.notes}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arch", nargs="*", default=["attention", "based"], help="default: attention based; or all")
    parser.add_argument("--d-model", nargs="*", type=int, default=[64])
    parser.add_argument("--replicas", type=int, default=12)
    parser.add_argument("--slices", nargs="*", default=[f"{t}x{n}" for t, n in SLICES], help="T x N, such as 256x64")
    parser.add_argument("--warm", action="store_true", help="only compile, for a measurement later")
    parser.add_argument("--profile", type=Path, help="also write where the time goes, to this folder")
    parser.add_argument("--equal", type=int, metavar="SEEDS", help="compare accuracies with the usual loop's instead")
    parser.add_argument("--trial", action="store_true", help="time a whole trial of the papers' recipe instead")
    parser.add_argument("--out", type=Path, default=RESULTS / "training.csv", help="where the rows go")
    given = parser.parse_args()
    device = torch.device("cuda")
    names = known_architectures() if given.arch == ["all"] else given.arch
    common = machine("torch", "triton") | {"gpu": torch.cuda.get_device_name()}
    for name in names:
        settings = {"window": 0, "feature_dim": 16} if name == "based" else {}
        if given.equal or given.trial:
            found = (
                equal_results(name, settings, given.equal, device)
                if given.equal
                else whole_trial(name, settings, device)
            )
            print(found, flush=True)
            continue
        for d_model, text in itertools.product(given.d_model, given.slices):
            shape = tuple(map(int, text.split("x")))
            torch.cuda.reset_peak_memory_stats()
            try:
                with full_precision():
                    row = measure(name, d_model, shape, given.replicas, settings, given.warm)
                    print(row, flush=True)
                    if not given.warm:
                        append([row], common, COLUMNS, given.out)
                    if given.profile:
                        given.profile.mkdir(parents=True, exist_ok=True)
                        where = profile(name, d_model, shape, given.replicas, settings)
                        (given.profile / f"{name}-{d_model}-{text}.txt").write_text(where)
            except Exception:  # the others shall have their rows
                print(name, d_model, text, traceback.format_exc()[-3000:], flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
