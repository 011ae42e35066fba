"""The kernel benchmarks: their workloads are right, what is compiled is what is committed, and a CPU claims no speed."""

import json
import operator
from dataclasses import replace

import pytest
import torch

from gatec import GatecError, bench
from gatec.aot import LIMITS
from gatec.bench.accuracy import error_over_eager
from gatec.bench.builds import BUILDS, TARGETS
from gatec.bench.cases import CASES
from gatec.bench.ceilings import Ceilings, ceilings
from gatec.bench.compiling import compiling
from gatec.bench.plot import plotted
from gatec.bench.running import measured, running, weights_of
from gatec.bench.subjects import MLP, Function
from gatec.bench.turns import saved
from gatec.bench.workloads import WORKLOADS, Workload
from gatec.capture import unit_of

SLOW = Ceilings(1e6, 1e6)
TABLE = bench.RESULTS / "compile-cpu.json"


@pytest.mark.parametrize("work", WORKLOADS, ids=lambda w: w.name)
def test_a_workload_has_a_kernel_and_a_price(work):
    assert f"def {work.name}_forward" in work.kernel(torch.bfloat16).source
    assert work.bytes(torch.float32) == 2 * work.bytes(torch.bfloat16)


def test_bytes_are_every_operand_once_and_the_result():
    work = Workload(torch.mul, ((8, 4), (4,)))
    assert work.bytes(torch.float32) == 4 * (32 + 4 + 32)
    assert work.bytes(torch.float32, trained=True) == 4 * (2 * (32 + 4 + 32) + 32 + 4)


NO_DEVICE = pytest.mark.skipif(torch.cuda.is_available(), reason="measures there")


@NO_DEVICE
def test_without_a_device_nothing_is_said_to_be_measured():
    rows = running("^(swiglu|mlp|route)$")
    assert {r["measured"] for r in rows} == {"no: there is no CUDA device"}
    best = {r["case"]: r["H200 at best"] for r in rows}
    assert best == {"swiglu": "164 us", "mlp": "3.66 ms", "route": "518 ns"}


@NO_DEVICE
def test_a_cpu_measures_what_it_can_show():
    ahead, both = running("^recurrence$", rounds=1)
    assert ahead["eager / gatec"] > 1 and both["eager / gatec"] > 1
    assert "it would unroll the loop" in ahead["without"]


def test_a_loop_that_is_measured_is_rolled_for_every_length():
    case = next(c for c in CASES if c.name == "recurrence")
    subject = case.make(1, 40, 3)
    operands = subject.operands(torch.float32, "cpu")
    ours = case.ours(subject, operands)
    torch.testing.assert_close(ours(*operands), subject(*operands))
    assert unit_of(ours).replays == 0


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_case_runs_at_a_small_size(case):
    ahead, both = measured(case, case.small, torch.float32, "cpu", SLOW, compiles=False, rounds=1)
    for row in (ahead, both):
        assert row["eager ms"] > 0 and row["gatec ms"] > 0 and row["of the device"] > 0
        assert all(f"{name} ms" in row or f"{name}: " in row["without"] for name in case.rivals)
    assert both["saved MB eager"] >= 0 and "saved MB gatec" in both


def test_a_rival_that_computes_something_else_is_not_measured():
    case = next(c for c in CASES if c.name == "mlp")
    wrong = replace(case, rivals={"twice": lambda m: lambda x: 2 * m(x), "broken": lambda m: lambda x: x.missing})
    row, _ = measured(wrong, case.small, torch.float32, "cpu", SLOW, compiles=False, rounds=1)
    assert "twice: its result is 1 away" in row["without"] and "broken: AttributeError" in row["without"]


def test_what_a_forward_keeps_is_counted_once_and_without_weights():
    mlp = MLP(5, 8, 12)
    gate, silu, up, hidden = [4 * 5 * 12] * 4
    assert saved(mlp, mlp.operands(torch.float32, "cpu"), [*mlp.parameters()]) == gate + silu + up + hidden


def test_a_copy_is_measured_with_the_gradients_of_its_own_weights():
    case = next(c for c in CASES if c.name == "mlp")
    subject = case.make(*case.small)
    ours = case.ours(subject, tuple(subject.operands(torch.float32, "cpu")))
    mine = weights_of(ours, subject)
    assert len(mine) == 3 and not {id(p) for p in mine} & {id(p) for p in subject.parameters()}
    _, both = measured(case, case.small, torch.float32, "cpu", SLOW, compiles=False, rounds=1)
    assert both["saved MB gatec"] == both["saved MB eager"]  # a CPU leaves the module as it is


def test_a_picture_of_the_ratios(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"case": "mlp", "side": "both", "eager / gatec": 1.5, "liger / gatec": 0.9},
        {"case": "other", "measured": "no"},
    ]
    assert plotted(rows, tmp_path / "ratios.png").read_bytes()[1:4] == b"PNG"


def test_nothing_measured_is_nothing_to_plot(tmp_path):
    with pytest.raises(GatecError, match=r"matplotlib|measured rows to plot"):
        plotted([{"case": "mlp", "measured": "no"}], tmp_path / "ratios.png")


def test_what_is_committed_has_every_kernel_and_no_spill():
    rows = json.loads(TABLE.read_text())["rows"]
    wanted = {(job["name"], job["way"], job["target"]) for b in BUILDS for job in b.jobs("", torch.bfloat16)}
    assert {(r["case"], r["way"], r["target"]) for r in rows} == wanted
    kernels = {(r["case"], r["kernel"]) for r in rows}
    assert all({(w.name, f"{w.name}_{side}") for side in ("forward", "backward")} <= kernels for w in WORKLOADS)
    assert all(r["spills"] == r["stack"] == 0 for r in rows)
    assert all(r["shared"] <= LIMITS[r["target"]] for r in rows)


def test_committed_products_are_the_tensor_cores():
    rows = [r for r in json.loads(TABLE.read_text())["rows"] if r["case"] in ("projected", "experts")]
    asked = [r for r in rows if r["kernel"] not in ("sort", "projected_backward")]
    assert len(asked) > 20 and all(r["products"] for r in asked)


@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.name)
def test_a_build_has_its_kernels_written(build):
    source = build.source(torch.bfloat16).source
    assert f"def {build.forward}(" in source and "def backward(" in source
    assert len(build.jobs("file.py", torch.bfloat16)) >= len(TARGETS)


@pytest.mark.sweep
def test_kernels_take_no_more_than_what_is_committed():
    place = operator.itemgetter("case", "way", "kernel", "target")
    known: dict[tuple[str, ...], int] = {}
    for row in json.loads(TABLE.read_text())["rows"]:
        known[place(row)] = max(known.get(place(row), 0), row["registers"])
    for row in compiling():
        assert row["spills"] == 0 and row["registers"] <= 1.15 * known[place(row)] + 4, row


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_case_is_right_and_measured_on_a_device():
    most = ceilings("cuda", torch.bfloat16)
    for case in CASES:
        for graphs in (False, True):
            for row in measured(
                case, case.small, torch.bfloat16, "cuda", most, compiles=False, graphs=graphs, rounds=2
            ):
                assert row["gatec ms"] > 0, row
    for work in WORKLOADS:
        subject = Function(work)
        assert error_over_eager(subject, subject.operands(torch.bfloat16, "cuda")) <= 2, work.name
