"""The selective scan of Mamba: a diagonal recurrence whose decay and input depend on the token."""

from zoology.kernels.selective_scan.reference import selective_scan, selective_scan_step

__all__ = ["selective_scan", "selective_scan_step"]
