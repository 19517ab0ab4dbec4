"""What every test folder may use."""

import gc
import os
import sys
import tempfile
from pathlib import Path

# Tests run side by side, one on each core (pytest -n auto): threads within them would only get in each other's way.
# Before torch is imported, as it reads this once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from zoology import registry
from zoology.architectures.base import architectures, mixers
from zoology.tasks.base import tasks


@pytest.fixture
def own_registries(monkeypatch):
    """The registries as they are in a fresh process, without what other tests have registered, and the test's own.

    The loaded plugins and `sys.path` too: what the test adds is gone afterwards.
    """
    for names in (mixers, architectures, tasks):
        packaged = {name: thing for name, thing in names._entries.items() if thing.__module__.startswith("zoology.")}
        monkeypatch.setattr(names, "_entries", packaged)
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def compiled_afresh(request):
    """On a GPU, where tests compile one function for many shapes, the compiler forgets what it has seen of it: it gives
    up after eight."""
    if request.node.get_closest_marker("gpu"):
        torch._dynamo.reset()


@pytest.fixture
def unwritten_is_nan(monkeypatch):
    """What a kernel leaves unwritten of its outputs, or reads unwritten, is NaN."""
    empty = torch.Tensor.new_empty

    def new_empty(self, *args, **kwargs):
        out = empty(self, *args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)


@pytest.fixture
def memory_of_the_gpu():
    """For tests that take tens of gigabytes: one after another, in whatever process they run."""
    import fcntl  # not on Windows

    with open(Path(tempfile.gettempdir()) / "zoology-gpu-tests.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        gc.collect()
        torch.cuda.empty_cache()
