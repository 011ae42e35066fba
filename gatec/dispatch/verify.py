"""Whether a way is right on this device: as near to float64 as eager, for random, ragged and large operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatec.dispatch.forms import Form, fitting, ragged

Run = Callable[..., Any]
AS_RIGHT = 1.5  # times eager's error
# Of the largest value, beside eager's own error: half types are rounded once from float32, wider ones at every step.
ROUNDINGS = {torch.float32: 4, torch.float64: 4}
LARGE = 64.0  # of the one trial with large operands
ELEMENTS = 1 << 24  # of the largest operand in a trial: float64 takes four times the room
ROWS = 509  # at most, in the ragged trial


@dataclass(frozen=True)
class Trial:
    """A way beside eager, which `exact` computes in float64 too; all three must be picklable."""

    way: Run
    eager: Run
    exact: Run
    forms: tuple[Form, ...]
    device: str


class Wrong(Exception):
    """A way ran and its result is not as right as eager's."""


class Unproven(Exception):
    """There was nothing to compare a way with."""


def verified(trial: Trial) -> None:
    """Raises Wrong, Unproven, or whatever the way raises."""
    compared = 0
    for forms, seed, scale in _inputs(trial.forms):
        compared += _compared(trial, forms, seed, scale)
    if not compared:
        raise Unproven("eager does not run on stand-ins of its operands")


def _inputs(forms: Sequence[Form]) -> Iterator[tuple[Sequence[Form], int, float]]:
    whole = fitting(forms, ELEMENTS)
    yield whole, 0, 1.0
    yield whole, 1, 1.0
    yield whole, 2, LARGE
    if (odd := ragged(whole, ROWS)) != whole:
        yield odd, 3, 1.0


def _compared(trial: Trial, forms: Sequence[Form], seed: int, scale: float) -> bool:
    """Whether there was something to compare with: eager may refuse a stand-in, whose sizes are guessed."""
    device, generator = torch.device(trial.device), torch.Generator().manual_seed(seed)
    tensors = [f.make(device, generator, scale) for f in forms]
    try:
        wanted = flat(trial.eager(*tensors))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, ValueError):
        return False
    truth = flat(trial.exact(*(t.double() if t.is_floating_point() else t for t in tensors)))
    found = flat(trial.way(*tensors))
    if len(found) != len(wanted):
        raise Wrong(f"{len(found)} results instead of {len(wanted)}")
    for i, (f, w, t) in enumerate(zip(found, wanted, truth, strict=True)):
        if why := unlike(f, w, t):
            raise Wrong(f"result {i} {why}, operands {', '.join(str(tuple(x.shape)) for x in tensors)}")
    return True


def unlike(found: Tensor, wanted: Tensor, truth: Tensor) -> str:
    """Why `found` is not as near to the truth as eager's `wanted`, or nothing."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"is {tuple(found.shape)} {found.dtype} instead of {tuple(wanted.shape)} {wanted.dtype}"
    if not found.dtype.is_floating_point:
        return "" if torch.equal(found, wanted) else "differs"
    known = wanted.isfinite() & truth.to(wanted.dtype).isfinite()
    if not bool(found.isfinite()[known].all()):
        return "is not finite where eager's is"
    if not bool(known.any()):
        return ""
    true = truth[known].double()
    ours, theirs = (float((x[known].double() - true).abs().max()) for x in (found, wanted))
    floor = ROUNDINGS.get(wanted.dtype, 1) * torch.finfo(wanted.dtype).eps * float(true.abs().max())
    return "" if ours <= AS_RIGHT * theirs + floor else f"is off by {ours:.1e}, eager by {theirs:.1e}"


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [v for v in value if v is not None]
