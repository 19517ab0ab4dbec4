"""Triton's kernels compiled ahead, many at a time.

Triton compiles a kernel at its first launch, half a second to two seconds each, one after another. A trial launches
dozens. Here a function runs without them, only to see which it would launch, and threads compile these: Triton's passes
do not hold the interpreter's lock. Whatever goes wrong with that is left for the first launch to meet.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from zoology.kernels.replicas import HAS_TRITON

_looking = False


def looking() -> bool:
    """Whether kernels are left out at present, so that what ops return is of no use."""
    return _looking


def compile_ahead(run: Callable[[], object]) -> None:
    """Compile in the background what `run` would launch. It is called once, and nothing may come of its results: in it,
    kernels that are not compiled yet are left out."""
    if not HAS_TRITON:
        return
    wanted: dict[tuple[Any, Any], str] = {}
    with contextlib.suppress(Exception), _left_out(wanted):
        run()
    if wanted:
        threads = ThreadPoolExecutor(min(len(wanted), os.cpu_count() or 1), thread_name_prefix="kernels")
        for (kernel, _), how in wanted.items():
            threads.submit(kernel.preload, how)
        threads.shutdown(wait=False)


@contextlib.contextmanager
def _left_out(wanted: dict[tuple[Any, Any], str]) -> Iterator[None]:
    """Put what would be compiled into `wanted`: (kernel, key) -> how, as `JITFunction.preload` takes it."""
    global _looking
    from triton import knobs

    def collect(*, key: Any, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        wanted[fn.jit_function, key] = compile["specialization_data"]
        return True  # not now

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = collect
    _looking = True
    try:
        yield
    finally:
        _looking = False
        knobs.runtime.jit_cache_hook = before
