"""CUDA graphs of what a stack does, and what is said where there can be none."""

from collections.abc import Callable
from typing import Any

import torch


def graph_of(run: Callable[[], object], **options: Any) -> torch.cuda.CUDAGraph:
    """The CUDA graph of a function's kernels; `options` are `torch.cuda.graph`'s.

    Raises:
        RuntimeError: something in it cannot be captured; torch.OutOfMemoryError, if there is no memory for it. The
            process goes on as it was in either case.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, **options):
            run()
    except RuntimeError:
        # The random state still believes to be inside of the capture: go on with a copy that does not.
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    return graph


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"  # the rest is advice on PyTorch's allocator
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".strip(": ")
