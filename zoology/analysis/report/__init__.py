"""A report of runs: one HTML file that works offline. `gather` computes, `lay_out` draws, `write_report` does both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoology.analysis.files import write_whole
from zoology.analysis.report.contents import Contents, gather
from zoology.analysis.report.page import lay_out
from zoology.registry import InputError

__all__ = ["Contents", "gather", "lay_out", "write_report"]


def write_report(paths: Sequence[Path], out: Path, **options: Any) -> None:
    """Writes the report of some runs: whole or not at all, the same bytes each time.

    Args:
        paths: run folders, or their `results.jsonl`.
        out: the file, which ends in .html.
        options: of `gather`.

    Raises:
        InputError: another suffix, a file that cannot be written, or see `gather`.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"report {out.name!r}: the name must end in .html")
    # Said before the work, not after it.
    if not out.parent.is_dir():
        raise InputError(f"report {str(out)!r} cannot be written: there is no folder {str(out.parent)!r}")
    if out.is_dir():
        raise InputError(f"report {str(out)!r} cannot be written: it is a folder")
    write_whole(out, lay_out(gather(paths, **options)).encode(), "report")
