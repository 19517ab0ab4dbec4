"""RWKV-4's WKV: a weighted mean of all values so far, for every channel on its own."""

from zoology.kernels.wkv.reference import WKVState, empty_state, wkv, wkv_step

__all__ = ["WKVState", "empty_state", "wkv", "wkv_step"]
