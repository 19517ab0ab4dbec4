"""Freed memory stays with a process that trains."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from zoology.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def run():
    parts = [torch.ones(2**23) for _ in range(4)]  # 32 MiB each
    return sum(float(part[-1]) for part in parts)
for _ in range(6):
    run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    assert run() == 4
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_pages_are_asked_for_once():
    """Three times 128 MiB are 98304 pages of 4 KiB, or 192 huge ones."""
    given_back, kept = faults("give back"), faults("keep")
    assert kept < 20 < given_back
