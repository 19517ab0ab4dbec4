"""Ops that the compiler sees into."""

import subprocess
import sys

import pytest


def test_they_are_known_to_a_compiler_that_was_in_use_before():
    """In a process of its own: what was compiled before is what matters."""
    pytest.importorskip("triton")
    told = """
from torch._inductor.decomposition import select_decomp_table
before = set(select_decomp_table())
from zoology.kernels.inline import inline
inline()
inline()
print(*sorted(str(op) for op in set(select_decomp_table()) - before))
"""
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    names = ("add_norm", "embedding", "linear", "take_rows")
    assert done.stdout.split() == [f"zoology.{name}.default" for name in names]
