"""The kernel benchmarks: their workloads are right, what is compiled is what is committed, and a CPU claims no speed."""

import json

import pytest
import torch

from gatec import bench
from gatec.bench.compiling import TARGETS, compiling
from gatec.bench.running import copied, measured, running
from gatec.bench.workloads import WORKLOADS, Workload

TABLE = bench.RESULTS / "compile-cpu.json"


@pytest.mark.parametrize("work", WORKLOADS, ids=lambda w: w.name)
def test_a_workload_has_a_kernel_and_a_price(work):
    assert f"def {work.name}_forward" in work.kernel(torch.bfloat16).source
    assert work.bytes(torch.float32) == 2 * work.bytes(torch.bfloat16)


def test_bytes_are_every_operand_once_and_the_result():
    work = Workload(torch.mul, ((8, 4), (4,)))
    assert work.bytes(torch.float32) == 4 * (32 + 4 + 32)
    assert work.bytes(torch.float32, trained=True) == 4 * (2 * (32 + 4 + 32) + 32 + 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures there")
def test_without_a_device_nothing_is_said_to_be_measured():
    rows = running()
    assert {r["measured"] for r in rows} == {"no: there is no CUDA device"}
    assert next(r for r in rows if r["workload"] == "swiglu")["H200 at best"] == "164 us"


def test_what_is_committed_names_every_kernel_and_no_spill():
    rows = json.loads(TABLE.read_text())["rows"]
    wanted = {(f"{w.name}_{side}", target) for w in WORKLOADS for side in ("forward", "backward") for target in TARGETS}
    assert {(r["kernel"], r["target"]) for r in rows} == wanted
    assert all(r["spills"] == r["stack"] == 0 for r in rows)
    assert all(r["shared"] <= (232_448 if r["target"] == "sm_90" else 65_536) for r in rows)


@pytest.mark.sweep
def test_kernels_take_no_more_than_what_is_committed():
    committed = json.loads(TABLE.read_text())
    known = {(r["kernel"], r["target"]): r["registers"] for r in committed["rows"]}
    for row in compiling():
        assert row["spills"] == 0 and row["registers"] <= 1.15 * known[row["kernel"], row["target"]] + 4, row


@pytest.mark.gpu
def test_every_workload_is_right_and_measured_on_a_device():
    for work in WORKLOADS:
        for row in measured(work, torch.bfloat16, copied()):
            assert row["error / eager's"] <= 2, row
