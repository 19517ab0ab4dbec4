"""A linear recurrence whose transition is diagonal plus low rank: RWKV-7's generalised delta rule."""

from zoology.kernels.dplr.reference import dplr, dplr_step

__all__ = ["dplr", "dplr_step"]
