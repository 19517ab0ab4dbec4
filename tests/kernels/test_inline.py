"""Ops that the compiler sees into."""

import subprocess
import sys

import pytest
import torch

from zoology.kernels.inline import inline, sources


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


def test_the_compilers_cache_is_another_for_other_sources(tmp_path):
    (tmp_path / "op").mkdir()
    file = tmp_path / "op" / "triton.py"
    file.write_text("one = 1")
    first = sources(tmp_path)
    assert sources(tmp_path) == first
    file.write_text("one = 2")
    second = sources(tmp_path)
    file.rename(tmp_path / "triton.py")
    assert len({first, second, sources(tmp_path)}) == 3


def test_the_compilers_key_has_them_after_what_the_user_gave():
    from torch._inductor.codecache import FxGraphHashDetails

    with torch.compiler.config.patch(cache_key_tag="mine "):
        inline()
        inline()
        graph = torch.fx.symbolic_trace(torch.nn.Identity())
        tag = FxGraphHashDetails(graph, [], {}, []).cache_key_tag
    name, ours = tag.split()
    assert name == "mine"
    assert ours.startswith("zoology-")
    assert ours.count("zoology") == 1
