"""The commands that read finished runs: `plot`, `table`, `report`. They need no torch."""

from pathlib import Path
from typing import Annotated

import typer

from zoology.registry import InputError, did_you_mean

Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.", show_default=False)]
TaskOfRows = Annotated[str | None, typer.Option("--task", metavar="NAME", help="Only this task's rows.")]
SlicesOfRows = Annotated[str | None, typer.Option("--slice", metavar="LIST", help="Average over these slices only.")]
Published = Annotated[
    bool, typer.Option("--published", metavar="", help="Overlay what others have published on the frontier.")
]


def plot(
    runs: Runs,
    kind: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="One or several of frontier, slices, learning-rate, training, extrapolation, order, state; or all.",
        ),
    ] = "frontier",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the picture goes: .png, .svg or .pdf. Of several kinds, each adds its name. Default: KIND.png.",
            show_default=False,
        ),
    ] = None,
    task: TaskOfRows = None,
    slices: SlicesOfRows = None,
    published: Published = False,
    width: Annotated[
        float, typer.Option(metavar="INCHES", help="3.3 is a paper's column, 10 a slide; text grows more slowly.")
    ] = 5.0,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="A line above the picture.")] = None,
) -> None:
    """Draw one or several runs in one picture: the frontier, or another kind. Needs no torch."""
    from zoology.analysis.frontier import points
    from zoology.analysis.plots import KINDS, draw, save, size_of
    from zoology.analysis.records import load_runs
    from zoology.analysis.words import points_table
    from zoology.cli import stdout
    from zoology.flags import split_names
    from zoology.tables import results_table

    rows = load_runs(runs)
    chosen = split_names(slices) if slices else None
    kinds = list(KINDS) if kind == "all" else list(dict.fromkeys(split_names(kind)))
    if unknown := [each for each in kinds if each not in KINDS]:
        raise InputError(f"unknown kind {unknown[0]!r}: {did_you_mean(unknown[0], KINDS)}")
    if not kinds:
        raise InputError(f"no kind was given; there are {', '.join(KINDS)}")
    if published and "frontier" not in kinds:
        raise InputError(f"published points can be laid over the frontier, not over {', '.join(kinds)}")
    if "frontier" in kinds:
        stdout.print(results_table(points_table(points(rows, chosen, task)), stdout.width))
    for each in kinds:
        place = out or Path(f"{each}.png")
        place = place.with_name(f"{place.stem}-{each}{place.suffix}") if out and len(kinds) > 1 else place
        overlay = published and each == "frontier"
        try:
            figure = draw(each, rows, slices=chosen, task=task, published=overlay, title=title, size=size_of(width))
        except InputError as error:
            if kind != "all" or each == "frontier":  # what ails the frontier ails them all
                raise
            stdout.print(f"no {each}: {error}", style="dim", soft_wrap=True)
            continue
        save(figure, place)
        stdout.print(f"picture  {place}", soft_wrap=True)


def table(
    runs: Runs,
    kind: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What it holds. points: every trial; budgets: recall at 1, 4, 16, 64 KB; needed: bytes for 50, "
            "90, 99 %; leaders: who leads at each budget; beyond training; order of two sets; passes; position.",
        ),
    ] = "points",
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="One of markdown, latex, csv.")] = "markdown",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where it goes. Default: printed.", show_default=False)
    ] = None,
    task: TaskOfRows = None,
    slices: SlicesOfRows = None,
) -> None:
    """Write the points, or what they say, as a table for a paper, a page or a program. Needs no torch."""
    from zoology.analysis.files import write_whole
    from zoology.analysis.frontier import of_one_task
    from zoology.analysis.records import load_runs
    from zoology.analysis.tables import Given, render
    from zoology.flags import split_names

    rows = of_one_task(load_runs(runs), task)
    text = render(kind, form, Given(rows, split_names(slices) if slices else None))
    if out is None:
        typer.echo(text, nl=False)  # not through Rich, which would wrap it
    else:
        write_whole(out, text.encode(), "table")


def report(
    runs: Runs,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page goes.")] = Path("report.html"),
    task: TaskOfRows = None,
    slices: SlicesOfRows = None,
    published: Published = False,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the page.")] = None,
) -> None:
    """Write one page that tells all of one or several runs, to be opened in a browser, offline. Needs no torch."""
    from zoology.analysis.report import write_report
    from zoology.cli import stdout, typed
    from zoology.flags import split_names

    chosen = split_names(slices) if slices else None
    write_report(runs, out, command=typed(), slices=chosen, task=task, published=published, title=title)
    stdout.print(f"report   {out}", soft_wrap=True)
