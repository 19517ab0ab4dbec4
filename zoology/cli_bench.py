"""The commands that measure the machine that they run on: `bench kernels`."""

import csv
import io
from pathlib import Path
from typing import Annotated

import typer

from zoology.registry import InputError

LENGTHS = "1024,2048,4096,8192,16384,32768,65536"


def kernels(
    lengths: Annotated[str, typer.Option("--lengths", metavar="LIST", help="Tokens in the sequence.")] = LENGTHS,
    heads: Annotated[str, typer.Option("--heads", metavar="NUMBER", help="Heads, of 64 values each.")] = "16",
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the rows and pictures go.")] = Path(
        "bench"
    ),
) -> None:
    """Time the kernels against the length of the sequence, forward and backward, on this machine's GPU.

    Based's and a decaying linear attention beside PyTorch's attention, flash and cuDNN, and the kernels of
    flash-linear-attention where it is installed. Writes kernels.csv and two pictures.
    """
    from zoology.cli import stdout
    from zoology.flags import COUNT
    from zoology.sweeps.space import parse_value, parse_values

    tokens = sorted(parse_values("lengths", lengths, COUNT))
    number = parse_value("heads", heads, COUNT)
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            "bench kernels needs an NVIDIA GPU and a PyTorch built for CUDA: torch.cuda.is_available() is False"
        )
    import pandas as pd

    from zoology.analysis.files import write_whole
    from zoology.analysis.plots import save
    from zoology.analysis.plots.growth import length_name, plot_growth
    from zoology.kernels.growth import COLUMNS, MACHINE, PASSES, measure, methods
    from zoology.sweeps.progress import counted
    from zoology.tables import growth_table

    found, left_out = methods()
    if left_out:
        stdout.print(left_out, style="dim", soft_wrap=True)
    make_folder(out)
    rows = []
    total = len(tokens) * len(found) * len(PASSES)
    with counted(stdout, "timing kernels") as done:
        for row in measure(found, tokens, number):
            rows.append(row)
            done(len(rows), total)
            if row["error"]:
                where = f"{row['method']} {row['pass']} at {length_name(row['length'])}"
                stdout.print(f"no time: {where}: {row['error']}", style="yellow", soft_wrap=True)
    write_whole(out / "kernels.csv", as_csv(rows, COLUMNS + MACHINE), "table")
    frame = pd.DataFrame(rows)
    for what in PASSES:
        stdout.print(growth_table(rows, what))
    stdout.print(f"rows     {out / 'kernels.csv'}", soft_wrap=True)
    note = f"{number} heads of 64 values; {rows[0]['processor']}, torch {rows[0]['torch']}."
    for what in PASSES:
        picture = out / f"{what.replace('+', '-')}.png"
        save(plot_growth(frame, what, note=note), picture)
        stdout.print(f"picture  {picture}", soft_wrap=True)


def make_folder(path: Path) -> None:
    """The folder, made where it is missing.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {str(path)!r} cannot be made: {error.strerror}") from error


def as_csv(rows: list[dict[str, object]], columns: tuple[str, ...]) -> bytes:
    """Rows as the content of a file; milliseconds with four digits, and nothing where there is none."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        time = row["milliseconds"]
        writer.writerow(row | {"milliseconds": "" if time is None else f"{time:.4g}"})
    return file.getvalue().encode()
