"""Long lists of cases: some of them by default, the others in the sweep, and of the sweep a part."""

import math
import os
import zlib
from collections.abc import Iterable
from typing import Any

import pytest

ALL = os.environ.get("GATEC_SWEEP") == "all"
FEW = 3


def some(cases: Iterable[Any], of: int = 3, at: int = 0) -> list[Any]:
    """Each `of`-th case by default, from number `at` on; the others in the sweep."""
    return [c if i % of == at % of else swept(c) for i, c in enumerate(cases)]


def swept(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.sweep)


def left_out(items: list[pytest.Item]) -> set[str]:
    """Half of the swept cases of each test with more than a few, always the same half; none with GATEC_SWEEP=all."""
    cases: dict[str, list[str]] = {}
    for item in items if not ALL else ():
        if item.get_closest_marker("sweep"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item.nodeid)
    many = (sorted(names, key=lambda n: zlib.crc32(n.encode())) for names in cases.values() if len(names) > FEW)
    return {name for names in many for name in names[math.ceil(len(names) / 2) :]}
