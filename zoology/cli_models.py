"""The command that takes up trained models: `evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoology.cli_tasks import Slices

if TYPE_CHECKING:
    from zoology.flags import Given


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    slices: Slices = None,
    n: Annotated[
        str | None,
        typer.Option("--n", "-n", metavar="NUMBER", help="Test sequences of each slice. Default: as the run."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where the rows go. Default: evaluation.jsonl in the run folder."),
    ] = None,
    *,
    given: "Given",
) -> None:
    """Score a run's kept weights on other slices of its task, such as longer contexts: --seq-len 128 --num-pairs 24.

    The parameters of the run's task are flags; each takes a list.
    """
    from zoology.cli import stdout
    from zoology.flags import COUNT
    from zoology.sweeps.evaluate import evaluate_run
    from zoology.sweeps.folder import write_whole
    from zoology.sweeps.progress import counted
    from zoology.sweeps.space import parse_value
    from zoology.tables import evaluation_table
    from zoology.train import best_device

    count = None if n is None else parse_value("n", n, COUNT)
    with counted(stdout, "evaluating") as done:
        rows = evaluate_run(run, given.task_params, slices, count, best_device(), done)
    place = out or run / "evaluation.jsonl"
    write_whole(place, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    stdout.print(evaluation_table(rows))
    stdout.print(f"rows     {place}", soft_wrap=True)
