"""Experts over many processes: who holds them, how tokens reach them, and conversions that processes share."""

from gatec.parallel.named import transformers_plan
from gatec.parallel.plans import Experts, ep_plan, expert_parallel, tp_plan

__all__ = ["Experts", "ep_plan", "expert_parallel", "tp_plan", "transformers_plan"]
