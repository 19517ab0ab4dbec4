"""Causal convolutions as long as the sequence, by FFT."""

from zoology.kernels.long_conv.reference import long_conv, long_conv_inputs, long_conv_step

__all__ = ["long_conv", "long_conv_inputs", "long_conv_step"]
