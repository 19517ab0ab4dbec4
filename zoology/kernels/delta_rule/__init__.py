"""The delta rule: a linear memory that corrects what it holds under a key instead of adding to it."""

from zoology.kernels.delta_rule.reference import delta_rule, delta_rule_step

__all__ = ["delta_rule", "delta_rule_step"]
