"""Recurrences whose state is a matrix for each head, as one operator: linear attention with decay, and delta rules."""

from gatec.linear_attention.operator import LINEAR_ATTENTION, gated_delta_rule, linear_attention

__all__ = ["LINEAR_ATTENTION", "gated_delta_rule", "linear_attention"]
