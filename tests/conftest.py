"""What every test folder may use."""

import os
import sys

# Tests run side by side, one on each core (pytest -n auto): threads within them would only get in each other's way.
# Before torch is imported, as it reads this once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

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
