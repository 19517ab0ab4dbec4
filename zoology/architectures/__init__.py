"""Mixers, one file each, and the stacks made of them. Importing this registers the ones that come with the package."""

from zoology.architectures import (
    attention,
    base,
    based,
    jrt_rnn,
    linear_attention,
    prefix_linear_attention,
    short_conv,
    sliding_window,
)

__all__ = [
    "attention",
    "base",
    "based",
    "jrt_rnn",
    "linear_attention",
    "prefix_linear_attention",
    "short_conv",
    "sliding_window",
]
