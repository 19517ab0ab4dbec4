"""Causal linear attention, with second-order Taylor features or features that the caller made."""

from zoology.kernels.linear_attention.reference import (
    LinearAttentionState,
    linear_attention,
    taylor_features,
)
from zoology.kernels.linear_attention.step import linear_attention_step

__all__ = ["LinearAttentionState", "linear_attention", "linear_attention_step", "taylor_features"]
