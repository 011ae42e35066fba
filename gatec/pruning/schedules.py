"""How a budget tightens while a model is trained."""

from __future__ import annotations

from gatec.errors import GatecError


def schedule(
    progress: float, to: float, *, first: float = 1.0, begin: float = 0.0, end: float = 0.7, power: float = 3.0
) -> float:
    """The share that is allowed when this share of the steps is done: to + (first - to) (1 - t)^power, where t goes from 0 to
    1 between `begin` (before it, the gates warm up under the first budget) and `end` (after it, the last one holds).

    power    3 tightens fast and then slowly, 1 evenly

    In any training loop: `away = gatec.budget(model) / gatec.schedule(step / steps, 0.5) - 1` and
    `loss + 2 * away.clamp(min=0)`, or `away.abs()`, which opens gates again that were closed too early.

    Zhu and Gupta 2017, "To prune, or not to prune", https://arxiv.org/abs/1710.01878
    """
    if not 0 < to <= first or not 0 <= begin < end <= 1 or not power > 0:
        raise GatecError("0 < to <= first, 0 <= begin < end <= 1 and a power above 0",
                         found=f"to={to}, first={first}, begin={begin}, end={end}, power={power}",
                         hint="gatec.schedule(step / steps, 0.5)")  # fmt: skip
    done = min(max((progress - begin) / (end - begin), 0.0), 1.0)
    return to + (first - to) * float((1 - done) ** power)
