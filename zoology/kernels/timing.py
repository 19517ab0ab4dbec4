"""How long a GPU takes for a function: the median over replays of a CUDA graph, free of the time to launch kernels."""

import statistics
from collections.abc import Callable

import torch

MOST_CALLS = 50


def milliseconds(function: Callable[[], object], replays: int = 15) -> float:
    """The median time of a function's kernels, by replays of a CUDA graph of some calls.

    Args:
        function: launches the kernels; the same at every call, and nothing in it waits for the GPU.
        replays: of the graph, which holds as many calls as take about 2 ms, at most `MOST_CALLS`. A graph starts in
            some microseconds, which its calls share.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    # Not a call from Python, which may take longer than its kernels.
    one = _replay(_captured(function, 1))
    calls = max(1, min(MOST_CALLS, int(2 / max(one, 1e-3))))
    graph = _captured(function, calls)
    return statistics.median(_replay(graph) for _ in range(replays)) / calls


def _captured(function: Callable[[], object], calls: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    graph.replay()
    return graph


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds from before a replay to its end."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))
