"""Mixers, one file each, and the stacks made of them. Importing this registers the ones that come with the package."""

from zoology.architectures import (
    attention,
    base,
    based,
    deltanet,
    gated_deltanet,
    linear_attention,
    rwkv4,
    rwkv7,
    short_conv,
    sliding_window,
)

__all__ = [
    "attention",
    "base",
    "based",
    "deltanet",
    "gated_deltanet",
    "linear_attention",
    "rwkv4",
    "rwkv7",
    "short_conv",
    "sliding_window",
]
