"""Every model of the sweep, by suite."""

from __future__ import annotations

import functools
import importlib.util

from gatec.bench.coverage import of_diffusers, of_recommenders, of_timm, of_transformers, written
from gatec.bench.coverage.entry import Entry

SUITES = {"transformers": of_transformers, "timm": of_timm, "diffusers": of_diffusers,
          "recommenders": of_recommenders, "plain": written}  # fmt: skip


@functools.cache
def entries() -> dict[str, Entry]:
    """By "suite:name"; a suite whose package is not installed has none."""
    there = [module for module in SUITES.values() if all(map(importlib.util.find_spec, module.NEEDS))]
    return {entry.spec: entry for module in there for entry in module.entries()}
