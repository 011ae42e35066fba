"""A picture of what `gatec bench kernels` measured: how many times gatec's milliseconds everybody else takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatec.errors import GatecError

SUFFIX = " / gatec"


def plotted(rows: Sequence[dict[str, Any]], file: Path) -> Path:
    """Bars on a logarithmic axis, a group for each case and side; right of the line gatec is faster."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise GatecError("matplotlib", found=str(e), hint="pip install gatec[bench]") from e
    shown = [row for row in rows if any(key.endswith(SUFFIX) for key in row)]
    if not shown:
        raise GatecError("measured rows to plot", found="none", hint="gatec bench kernels, on a CUDA device")
    rivals = list(dict.fromkeys(k for row in shown for k in row if k.endswith(SUFFIX)))
    figure = Figure(figsize=(9, 1 + 0.18 * len(shown) * (len(rivals) + 1)), layout="constrained")
    axes, high = figure.add_subplot(), 1 / (len(rivals) + 1)
    for i, rival in enumerate(rivals):
        there = [(at + i * high, row[rival]) for at, row in enumerate(shown) if rival in row]
        axes.barh([at for at, _ in there], [ratio for _, ratio in there], high, label=rival.removesuffix(SUFFIX))
    axes.set_yticks([at + (len(rivals) - 1) * high / 2 for at in range(len(shown))],
                    [f"{row['case']}, {row['side']}" for row in shown])  # fmt: skip
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("time over gatec's")
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(file)
    return file
