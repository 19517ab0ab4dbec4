"""Writing what was made: whole or not at all."""

import os
from pathlib import Path

from zoology.registry import InputError


def write_whole(path: Path, content: bytes, what: str) -> None:
    """Writes a file, or leaves what was there.

    Args:
        path: of the file, in a folder that is there.
        content: of the file.
        what: it is, for the message: "figure".

    Raises:
        InputError: it cannot be written.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"{what} {str(path)!r} cannot be written: {error.strerror}") from error
    finally:
        if draft.is_file():
            draft.unlink()
