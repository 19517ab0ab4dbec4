"""Causal linear attention whose state forgets each channel of the keys at its own, data-dependent rate."""

from zoology.kernels.gated_linear_attention.reference import gated_linear_attention, gated_linear_attention_step

__all__ = ["gated_linear_attention", "gated_linear_attention_step"]
