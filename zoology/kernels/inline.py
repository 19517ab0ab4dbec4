"""Ops that torch.compile may see into, so that it fuses them with what stands around them."""

import functools
import hashlib
import importlib
from pathlib import Path

import torch

from zoology.kernels.replicas import HAS_TRITON

OPS = ("linear", "add_norm.triton", "embedding.triton", "take_rows.triton") if HAS_TRITON else ("linear",)
"""Modules here with a table INLINED: custom op -> the op in PyTorch. Its own gradient and vmap rule hold as before."""


def inline() -> None:
    """To be called before a model is compiled; a second call is free.

    It loads the compiler, which takes a second. Without it, and in what was compiled before it, these ops are opaque,
    and their results the same.

    What the compiler keeps on disk is kept apart by the sources of our ops. Its own keys know ops by their names alone,
    and would give a graph of another version of them.
    """
    from torch._inductor.decomposition import decompositions, fast_random_decomps, register_decomposition

    for name in OPS:
        for op, function in importlib.import_module(f"zoology.kernels.{name}").INLINED.items():
            if op._opoverload not in decompositions:
                register_decomposition([op._opoverload])(function)
    # The compiler keeps a copy from its first use on. With an old one it would take these ops for opaque where it reads
    # that, and refuse them for being both where it does not.
    fast_random_decomps.cache_clear()
    given = torch.compiler.config.cache_key_tag
    if _ours() not in given:
        torch.compiler.config.cache_key_tag = given + _ours()


@functools.cache
def _ours() -> str:
    return sources(Path(__file__).parent)


def sources(folder: Path) -> str:
    """A name for all Python files in a folder that another content, or another name of one, changes."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()} {len(content)} ".encode() + content)
    return f"zoology-{found.hexdigest()[:16]}"
