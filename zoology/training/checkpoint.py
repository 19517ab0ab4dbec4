"""Tensors and a few words of JSON in one safetensors file, written whole, and refused where torn or altered."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


class Torn(ValueError):
    """A file that is not what was written."""


def write(path: Path, tensors: dict[str, Tensor], words: dict[str, Any]) -> None:
    """Write a checkpoint so that a reader, or a crash, sees the old one or the new, never a part.

    Args:
        path: the file; its folder is made.
        tensors: what is kept, on any device.
        words: what JSON can say.
    """
    kept = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {"words": json.dumps(words), "sha256": _digest(kept)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(save(kept, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write` wrote: tensors on the CPU, and words.

    Raises:
        FileNotFoundError: there is none.
        Torn: it is not whole, or was altered.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        words = json.loads(metadata["words"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise Torn(f"{path} is torn ({error})") from error
    if metadata.get("sha256") != _digest(tensors):
        raise Torn(f"{path} was altered: its tensors are not those that were written")
    return tensors, words


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        found.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        found.update(t.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
