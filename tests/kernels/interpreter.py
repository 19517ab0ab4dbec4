"""The Triton kernels on a CPU. Triton reads TRITON_INTERPRET when it is imported, so their tests are a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")


def run(file):
    """pytest over a file of this folder, whose tests run the kernels, in a process where they are interpreted."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--no-header", "--tb=short"]
    done = subprocess.run(
        [*command, str(Path(__file__).parent / file)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
