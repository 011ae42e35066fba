"""Every case beside eager, torch.compile and other libraries, forward and with gradients, in turns in one run.

A CPU measures the cases that it has something to show of; of the others it says what a roofline expects of an H200.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gatec.bench.accuracy import error_over_eager
from gatec.bench.cases import CASES, Case, fused
from gatec.bench.ceilings import Ceilings, ceilings, ideal
from gatec.bench.subjects import Subject
from gatec.bench.turns import graphed, in_turns, peak, saved, short
from gatec.dispatch import CHOOSER, Budget
from gatec.fusing import kernels_of
from gatec.roofline import in_seconds, machine

Row = dict[str, Any]
Run = Callable[..., Any]
COMPILED = {"compile": {}, "max_autotune": {"mode": "max-autotune-no-cudagraphs"}}
LOOPS = 3  # rounds where a loop takes seconds
FAR = 0.05  # a rival whose result is further from eager's than this part of it computes something else


@dataclass
class Ways:
    """What runs, why some do not, and the seconds that each took to be made and run once."""

    runs: dict[str, Run] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def put(self, name: str, make: Callable[[], Run]) -> None:
        start = time.perf_counter()
        try:
            self.runs[name] = make()
            self.seconds[name] = time.perf_counter() - start
        except ImportError as e:
            self.missing[name] = f"not installed ({short(e)})" if e.name else short(e)
        except Exception as e:  # a rival that does not work here is a line of the table, not its end
            self.missing[name] = f"{type(e).__name__}: {short(e)}"

    def drop(self, name: str, why: str) -> None:
        self.runs.pop(name, None)
        self.missing[name] = why


def running(
    only: str = "", *, graphs: bool = False, compiles: bool = True, dtype: torch.dtype = torch.bfloat16,
    cases: Sequence[Case] = CASES, rounds: int = 20,
) -> list[Row]:  # fmt: skip
    """Rows of milliseconds, times over gatec's, the part of what the device allows, and memory; or why there are none.

    graphs    replay CUDA graphs: without what launches take of the host
    compiles  beside torch.compile, which takes minutes for some
    """
    chosen = [case for case in cases if re.search(only, case.name)]
    if torch.cuda.is_available():
        most = ceilings("cuda", dtype)
        run = partial(measured, dtype=dtype, device="cuda", most=most, graphs=graphs, compiles=compiles, rounds=rounds)
        return [row for case in chosen for row in run(case, case.sizes)]
    most, rows = ceilings("cpu", torch.float32), []
    for case in chosen:
        shown = case.cpu and measured(case, case.cpu, torch.float32, "cpu", most, compiles=False, rounds=min(rounds, 5))
        rows += shown or [expected(case, dtype)]
    return rows


def expected(case: Case, dtype: torch.dtype) -> Row:
    """What a roofline allows."""
    h200 = machine("h200")
    with torch.device("meta"):
        subject = case.make(*case.sizes)
    best = ideal(subject, dtype, Ceilings(h200.bandwidth, h200.matrix))
    return {"case": case.name, "H200 at best": in_seconds(best), "measured": "no: there is no CUDA device"}


def measured(
    case: Case, sizes: tuple[Any, ...], dtype: torch.dtype, device: str, most: Ceilings, *,
    graphs: bool = False, compiles: bool = True, rounds: int = 20,
) -> list[Row]:  # fmt: skip
    """A row for the value alone and one with the gradients of everything."""
    torch.manual_seed(0)
    with torch.device(device):
        subject = case.make(*sizes).to(dtype)
    operands = subject.operands(dtype, device)
    ways = ways_of(case, subject, operands, compiles)
    rounds = min(rounds, LOOPS) if case.loop else rounds
    rows = []
    for trained in (False, True):
        runs = {name: _bound(way, subject, operands, trained) for name, way in ways.runs.items()}
        if trained and (launched := _launched(subject, operands)):
            runs["kernel"] = launched
        row: Row = {"case": case.name, "side": "both" if trained else "forward"}
        rows.append(row | _measured(runs, ways.missing, ideal(subject, dtype, most, trained=trained),
                                    device=device, graphs=graphs, rounds=rounds))  # fmt: skip
    keep = {n: saved(w, operands, weights_of(w, subject)) for n, w in ways.runs.items() if n in ("eager", "gatec")}
    rows[0] |= {f"{n} s": round(ways.seconds[n], 2) for n in ("gatec", *COMPILED) if n in ways.runs}
    rows[1] |= {f"saved MB {name}": round(size / 1e6, 3) for name, size in keep.items()}
    if "kernel" in ways.runs:
        rows[1]["error / eager's"] = round(error_over_eager(subject, operands), 2)
    return rows


def ways_of(case: Case, subject: Subject, operands: list[Tensor], compiles: bool) -> Ways:
    """Eager, torch.compile twice, gatec's module with every choice made, its kernel alone, and the rivals."""
    ways = Ways()
    ways.put("eager", lambda: subject)
    for name, options in COMPILED.items():
        if case.loop:
            ways.missing[name] = "it would unroll the loop"
        elif compiles:
            ways.put(name, lambda o=options: torch.compile(subject, dynamic=False, **o))  # type: ignore[misc]
        else:
            ways.missing[name] = "not asked for"
    ways.put("gatec", lambda: tuned(case.ours(subject, tuple(operands)), operands))
    kernel = subject.kernel(operands[0].dtype)
    if kernel is not None and operands[0].is_cuda:
        ways.put("kernel", lambda: kernel.forward)
    for name, rival in case.rivals.items():
        ways.put(name, lambda r=rival: r(subject))  # type: ignore[misc]
    for name in list(ways.runs):
        start = time.perf_counter()
        if why := _other(ways.runs[name], subject, operands):
            ways.drop(name, why)
        ways.seconds[name] += time.perf_counter() - start
    ours = ways.runs.get("gatec")
    if isinstance(ours, nn.Module) and case.ours is fused and not kernels_of(ours):
        ways.missing["a region"] = "gatec found none, its module is eager's"
    return ways


def tuned(ours: nn.Module, operands: list[Tensor]) -> nn.Module:
    """Every region's choice made, as `gatec.tune` makes them."""
    if operands[0].is_cuda:
        with CHOOSER.waiting(Budget(key=60_000, total=600_000)):
            for trained in (False, True):
                with torch.set_grad_enabled(trained):
                    ours(*(x.detach().requires_grad_(trained) for x in operands))
    return ours


def _other(way: Run, subject: Subject, operands: list[Tensor]) -> str:
    """Why a way is not measured: it fails, or its values are not eager's."""
    try:
        with torch.no_grad():
            found, wanted = way(*operands), subject(*operands)
    except Exception as e:
        return f"{type(e).__name__}: {short(e)}"
    far = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    return "" if far < FAR else f"its result is {far:.2g} away"


def _bound(way: Run, subject: Subject, operands: list[Tensor], trained: bool) -> Callable[[], Any]:
    if not trained:
        return partial(_plainly, way, operands)
    leaves = [x.detach().requires_grad_() for x in operands]
    given = [*leaves, *weights_of(way, subject)]
    grad = torch.ones_like(subject(*operands).detach())
    return lambda: torch.autograd.grad(way(*leaves), given, grad)


def weights_of(way: Run, subject: Subject) -> list[nn.Parameter]:
    """A module's own, a rival's where it has a copy, else the subject's."""
    named = way.parameters() if isinstance(way, nn.Module) else getattr(way, "parameters", subject.parameters())
    return list(named)


def _plainly(way: Run, operands: list[Tensor]) -> Any:
    with torch.no_grad():
        return way(*operands)


def _launched(subject: Subject, operands: list[Tensor]) -> Callable[[], Any] | None:
    """Both launchers of a subject's one kernel."""
    kernel = subject.kernel(operands[0].dtype) if operands[0].is_cuda else None
    if kernel is None:
        return None
    grad = torch.ones_like(subject(*operands))
    return lambda: (kernel.forward(*operands), kernel.backward(grad, *operands))


def _measured(
    runs: dict[str, Run], missing: dict[str, str], best: float, *, device: str, graphs: bool, rounds: int
) -> Row:  # fmt: skip
    ways = Ways(missing=dict(missing))
    for name, run in runs.items():
        ways.put(name, lambda r=run: _once(r, graphs))  # type: ignore[misc]
    times = in_turns(ways.runs, device, rounds)
    row: Row = {f"{name} ms": round(1e3 * t, 4) for name, t in times.items()}
    ours = times.get("gatec")
    if ours:
        row |= {f"{name} / gatec": round(t / ours, 3) for name, t in times.items() if name != "gatec"}
        row["of the device"] = round(best / ours, 3)
    if device == "cuda":
        row |= {f"peak MB {name}": round(peak(run) / 1e6, 1) for name, run in runs.items() if name in ways.runs}
    return row | {"without": "; ".join(f"{name}: {why}" for name, why in ways.missing.items())}


def _once(run: Run, graphs: bool) -> Run:
    """It runs at all."""
    run()
    return graphed(run) if graphs else run
