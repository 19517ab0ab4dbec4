"""Mixers, one file each, and the stacks made of them. Importing this registers the ones that come with the package."""

from zoology.architectures import (
    attention,
    base,
    base_conv,
    based,
    h3,
    hyena,
    linear_attention,
    long_conv,
    mamba,
    s4d,
    short_conv,
    sliding_window,
)

__all__ = [
    "attention",
    "base",
    "base_conv",
    "based",
    "h3",
    "hyena",
    "linear_attention",
    "long_conv",
    "mamba",
    "s4d",
    "short_conv",
    "sliding_window",
]
