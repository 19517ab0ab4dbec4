"""How long a GPU takes for a function: the median over replays of a CUDA graph, free of the time to launch kernels."""

import statistics
from collections.abc import Callable

import torch


def milliseconds(function: Callable[[], object], replays: int = 15) -> float:
    """The median time of a function's kernels, by replays of a CUDA graph of some calls.

    Args:
        function: launches the kernels; the same at every call, and nothing in it waits for the GPU.
        replays: of the graph, which holds as many calls as take about 2 ms, at most 20.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize()
    calls = max(1, min(20, int(2 / max(begin.elapsed_time(end), 1e-3))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    graph.replay()
    times = []
    for _ in range(replays):
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return statistics.median(times)
