"""The Triton kernels of the selective scan, on a CPU."""

from interpreter import needs_triton, run


@needs_triton
def test_the_kernels_in_the_interpreter():
    run("interpreted_selective_scan.py")
