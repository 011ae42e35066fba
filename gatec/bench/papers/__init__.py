"""The literature as test bed: what gatec makes of blocks as their authors write them."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gatec.bench.papers.paper import FOLDER, Paper, papers
from gatec.bench.papers.row import Row, row

__all__ = ["FOLDER", "Paper", "literature", "papers", "summary"]


def literature(only: str = "", folder: Path = FOLDER, progress: Callable[[str], Any] | None = None) -> list[Row]:
    """A row for every block of a folder whose name matches `only`."""
    rows = []
    with _python_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for paper in papers(folder):
            if re.search(only, paper.name):
                if progress:
                    progress(paper.name)
                rows.append(row(paper))
    return rows


def summary(rows: list[Row]) -> list[str]:
    """How many blocks got how far."""
    drifts = [r["onnx"] for r in rows if isinstance(r["onnx"], float)]
    kinds = Counter(word.split()[0] for r in rows for word in filter(None, r["found"].split(", ")))
    return [
        f"{sum(r['captured'] == 'to the bit' for r in rows)} of {len(rows)} captured to the bit",
        f"{sum(r['as written'] for r in rows)} of {len(rows)} found as their files say, {len(kinds)} kinds",
        f"{len(drifts)} of {len(rows)} exported, onnxruntime off by at most {max(drifts, default=0.0):.1e}",
        f"{sum(r.get('skips', 0) for r in rows)} parts of {sum('skips' in r for r in rows)} files skipped where unused",
        f"{sum(bool(r['regions']) for r in rows)} of {len(rows)} with a region to fuse, {sum(r['regions'] for r in rows)} kernels",
        f"{sum(r['in kernels'] == r['gates'] for r in rows)} of {len(rows)} with every gate in a generated kernel, "
        f"{sum(r['in kernels'] for r in rows)} of {sum(r['gates'] for r in rows)} gates",
        f"{sum(bool(r['inserted by']) for r in rows)} of {len(rows)} whose gate a pass can insert",
    ]


@contextmanager
def _python_attention() -> Iterator[None]:
    """The fused inference path of nn.MultiheadAttention rounds otherwise than its Python, which graphs follow."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
