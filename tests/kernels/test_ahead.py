"""Kernels that are compiled ahead: how a function runs without them. On a GPU: test_gpu_ahead.py."""

import pytest

from zoology.kernels.ahead import compile_ahead, looking


def test_whatever_happens_kernels_are_launched_again_afterwards():
    knobs = pytest.importorskip("triton").knobs
    seen = []

    def run():
        seen.append((looking(), knobs.runtime.jit_cache_hook is not None))
        raise RuntimeError

    compile_ahead(run)
    assert seen == [(True, True)]
    assert not looking()
    assert knobs.runtime.jit_cache_hook is None
