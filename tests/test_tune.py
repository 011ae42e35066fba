"""Tuning, and what a fused model then runs: on a CPU in a GPU's place, with kernels in Triton's interpreter."""

import json
import pickle
from dataclasses import replace
from functools import cached_property, partial

import pytest
import torch
from devices import Device
from test_rows import CASES
from torch import nn

import gatec
from gatec import fusing, gemms, keeping, lower, tuning
from gatec.capture import Call, trace
from gatec.dispatch import choose
from gatec.dispatch.choose import Budget, Chooser
from gatec.dispatch.cuda import Cuda
from gatec.dispatch.forms import Form
from gatec.dispatch.jobs import Jobs
from gatec.dispatch.table import Table
from gatec.dispatch.verify import Trial
from gatec.dispatch.worker import Worker
from gatec.kernel import Kernel
from gatec.making import MAKERS, made_for
from gatec.regions import regions
from gatec.scanning import kernel_for, side_of
from gatec.verify import distance

X = torch.randn(3, 5, 16)


class Gated(nn.Module):
    """Every slope makes a region of its own: an op cannot be defined twice in a process."""

    def __init__(self, slope):
        super().__init__()
        self.both, self.slope = nn.Linear(16, 32), slope

    def forward(self, x):
        gate, value = self.both(x).chunk(2, -1)
        return torch.sigmoid(self.slope * gate) * value


class Projected(nn.Module):
    """A gate of two layers."""

    def __init__(self, slope):
        super().__init__()
        self.gate, self.value, self.slope = nn.Linear(16, 16), nn.Linear(16, 16), slope

    def forward(self, x):
        return torch.sigmoid(self.slope * self.gate(x)) * self.value(x)


class Leaky(nn.Module):
    """A state that two layers decide about."""

    def __init__(self, slope):
        super().__init__()
        self.gate, self.value, self.slope = nn.Linear(16, 16), nn.Linear(16, 16), slope

    def forward(self, x):
        kept = torch.sigmoid(self.slope * self.gate(x))
        return gatec.linear_recurrence(kept, (1 - kept) * self.value(x))


class Tapped(nn.Module):
    """A causal convolution under a gate."""

    def __init__(self, slope):
        super().__init__()
        self.conv, self.slope = nn.Conv1d(16, 16, 3, groups=16, padding=2), slope

    def forward(self, x):
        return torch.sigmoid(self.slope * self.conv(x.mT)[..., : x.shape[1]].mT) * x


class Fake(Device):
    """A kernel takes as long as the test says, and eager a millisecond."""

    def __init__(self, runs, **takes):
        super().__init__()
        self.runs, self.takes = runs, {"forward": 0.5, "backward": 0.5, **takes}

    def sample(self, run):
        before = len(self.runs)
        run()
        return self.takes[self.runs[-1]] if len(self.runs) > before else 1.0


@pytest.fixture
def runs(monkeypatch):
    """A list that grows by "forward" or "backward" whenever a generated launcher is called."""
    noted = []
    loading = Kernel.__dict__["_module"].func

    def load(self):
        module = loading(self)
        for name in ("forward", "backward"):
            setattr(module, name, noting(name, getattr(module, name)))
        return module

    def noting(name, launcher):
        def call(*args, **kwargs):
            noted.append(name)
            return launcher(*args, **kwargs)

        return call

    noticed = cached_property(load)
    noticed.__set_name__(Kernel, "_module")
    monkeypatch.setattr(Kernel, "_module", noticed)
    return noted


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.stop()


@pytest.fixture
def placed(monkeypatch, tmp_path, runs, worker):
    """Ops are chosen for on a CPU, by a device whose times are made up and a table of their own."""

    def put(**takes):
        chooser = Chooser(Fake(runs, **takes), Table(tmp_path), worker, Budget())
        monkeypatch.setattr(lower, "CHOOSER", chooser)
        monkeypatch.setattr(keeping, "CHOOSER", chooser)
        monkeypatch.setattr(tuning, "CHOOSER", chooser)
        monkeypatch.setattr(fusing, "CHOOSER", chooser)
        return chooser

    monkeypatch.setattr(lower, "DEVICE", "CPU")
    monkeypatch.setattr(keeping, "DEVICE", "CPU")
    monkeypatch.setattr(tuning, "fuse", lambda model, inputs: fusing.fuse(model, inputs, everywhere=True))
    return put


def step(model, x):
    """Output, and the gradients of everything."""
    x = x.clone().requires_grad_()
    out = model(x)
    out.square().sum().backward()
    return [out, x.grad, *(p.grad for p in model.parameters())]


def test_a_tuned_model_runs_its_kernels_forward_and_backward(placed, runs, tmp_path):
    placed()
    model = Gated(1.25)
    tuned = gatec.tune(model, X)
    assert [(n.side, n.way, n.ours, n.eager) for n in tuned.lines] == [
        ("forward", "kernel", 0.5, 1.0), ("backward", "kernel", 0.5, 1.0),
    ]  # fmt: skip
    chooser = placed()  # another process, as far as choices go
    fused = gatec.fuse(model, X, everywhere=True)
    runs.clear()
    found = step(fused, X)
    assert runs == ["forward", "backward"] and not chooser._jobs._jobs
    for ours, theirs in zip(found, step(model, X), strict=True):
        assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("backward", [0.5, 1.2])
def test_a_tuned_model_keeps_its_projections_where_its_backward_is_faster(placed, backward):
    placed(backward=backward)
    model = Projected(backward)
    tuned = {line.side: line.way for line in gatec.tune(model, X).lines}
    assert set(tuned) >= {"forward", "backward"} and tuned["backward"] == ("kernel" if backward < 1 else "")
    fused = gatec.fuse(model, X, everywhere=True)
    for ours, theirs in zip(step(fused, X), step(model, X), strict=True):
        assert distance(ours, theirs) < 1e-5


def test_where_the_backward_is_slower_the_model_trains_as_it_was(placed, runs):
    placed(backward=1.2)
    model = Gated(1.5)
    tuned = gatec.tune(model, X)
    assert [(n.side, n.way) for n in tuned.lines] == [("forward", "kernel"), ("backward", "")]
    fused = gatec.fuse(model, X, everywhere=True)
    runs.clear()
    found = step(fused, X)
    assert not runs
    assert all(torch.equal(a, b) for a, b in zip(found, step(model, X), strict=True))
    with torch.no_grad():
        fused(X)
    assert runs == ["forward"]


def test_a_compiler_sees_the_op(placed, runs):
    placed(forward=3.0, backward=3.0)
    model = Gated(1.75)
    gatec.tune(model, X)
    fused = gatec.fuse(model, X, everywhere=True)
    seen = []

    def backend(graph, inputs):
        seen.extend(str(n.target) for n in graph.graph.nodes)
        return graph.forward

    assert distance(torch.compile(fused, backend=backend, fullgraph=True)(X), model(X)) < 1e-6
    assert any(name.startswith("gatec.") for name in seen)


def test_tuning_is_read_by_people_and_by_programs(placed, tmp_path):
    placed(forward=2.0)
    tuned = gatec.tune(Gated(2.25), X)
    head, first, second = str(tuned).splitlines()
    assert head.split() == ["region", "side", "runs", "ms", "eager", "ms", "why"]
    assert "  forward   eager   2   " in first and first.endswith("not faster: kernel takes 2.00 of eager's time")
    assert "  backward  kernel  0.5  1  " in second
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "any.json").write_text(tuned.json())
    known = json.loads(tuned.json())
    assert len(known["lines"]) == len(known["entries"]) == 2
    answers = Table(tmp_path / "nothing", shipped)
    assert [answers.find(choose.Key(e["key"])).way for e in known["entries"].values()] == ["", "kernel"]


def test_a_failed_kernel_stands_in_the_models_report(placed, monkeypatch):
    chooser = placed()
    monkeypatch.setattr(chooser._jobs, "_worker", Wrong())
    model = Gated(2.5)
    with pytest.warns(RuntimeWarning, match="kernel is not used: result 0 is off"):
        gatec.tune(model, X)
    fused = gatec.fuse(model, X, everywhere=True)
    assert "forward kernel is not used: result 0 is off" in str(gatec.report(fused))
    assert all(torch.equal(a, b) for a, b in zip(step(fused, X), step(model, X), strict=True))
    assert not gatec.report(gatec.fuse(Gated(2.75), X, everywhere=True)).failed


class Wrong:
    def ask(self, trial):
        return "result 0 is off by 1.0e+00, eager by 1.0e-08"


def test_inductor_is_a_way_for_who_asks(placed, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda run, **_: compiled.append(run) or run)
    chooser = placed()
    monkeypatch.setattr(chooser, "_jobs", Jobs(All()))
    model = Gated(4.25)
    tuned = gatec.tune(model, X, inductor=True)
    assert all("inductor" in e["key"]["ways"] and "inductor" in e["times"] for e in tuned.entries.values()) and compiled
    fused = gatec.fuse(model, X, everywhere=True)
    for ours, theirs in zip(step(fused, X), step(model, X), strict=True):
        assert distance(ours, theirs) < 1e-5
    other = placed()
    gatec.tune(model, X)
    assert not other.inductor


@pytest.mark.sweep
def test_inductor_is_verified_in_another_process(worker):
    side = lower.sides(*made_of(Gated(4.5)))[0]
    forms = (Form.of(torch.randn(3, 5, 16)), Form.of(torch.randn(3, 5, 16)))
    assert worker.ask(Trial(side.with_inductor["inductor"], side.eager, side.exact, forms, "cpu")) == ""


class All:
    """Finds everything right."""

    def ask(self, trial):
        assert pickle.dumps(trial.way)  # another process reads it: to load a graph is no work for a thread
        return ""


def made_of(model):
    graph = trace(model, type(model).forward, Call((X,), {})).graph
    (region,) = regions(model, graph, lambda path: None)
    return made_for(region), region.function()


def test_on_a_cpu_there_is_nothing_to_choose():
    tuned = gatec.tune(Gated(1.0), X)
    assert str(tuned) == "no region of Gated is an op on this device: there is nothing to choose"
    assert not tuned.lines and not tuned.entries


@pytest.mark.parametrize("budget", [0, -1, float("nan")])
def test_a_budget_is_a_time(budget):
    with pytest.raises(gatec.GatecError, match="gatec: a budget in seconds\n  found"):
        gatec.tune(Gated(1.0), X, budget=budget)


# A model for each anchor: its ways run in another process first, so they must be able to go there.
MODELS = {"pointwise": lambda: Gated(3.0), "row": CASES["nn.RMSNorm"], "gemm": lambda: Projected(3.25),
          "scan": lambda: Leaky(3.5), "conv": lambda: Tapped(3.75)}  # fmt: skip
ELSEWHERE = {
    "mixture": "tests/interpret/test_grouping.py sends every way of it through the same verification",
    "router": "tests/interpret/test_router.py does so for it",
}


def test_every_anchor_has_a_model_here():
    assert set(MODELS) | set(ELSEWHERE) == set(MAKERS)


@pytest.mark.parametrize("anchor", MODELS)
def test_ways_are_verified_in_another_process(anchor, worker):
    model = MODELS[anchor]()
    graph = trace(model, type(model).forward, Call((X,), {})).graph
    region = next(r for r in regions(model, graph, lambda path: None) if r.anchor == anchor)
    made = made_for(region)
    values = [torch.randn(v.shape, dtype=v.dtype) for v in region.examples]
    for side in lower.sides(made, region.function()):
        forms = tuple(map(Form.of, side.operands(values)))
        for name, way in side.ways.items():
            trial = Trial(way, side.eager, side.exact, forms, "cpu")
            assert pickle.loads(pickle.dumps(trial)).forms == forms
            assert worker.ask(trial) == "", f"{side.name} {name}"


def test_a_wrong_gradient_of_projections_is_seen_there(worker):
    model = Projected(3.5)
    graph = trace(model, Projected.forward, Call((X,), {})).graph
    (region,) = regions(model, graph, lambda path: None)
    made = made_for(region)
    source = made.kernel.source.replace("flat(slope).t() @ flat(x)", "flat(slope).t() @ flat(x) * 1.001")
    assert source != made.kernel.source
    other = replace(made, backward={"kernel": partial(gemms._backward, Kernel(made.kernel.name, source))})
    values = [torch.randn(v.shape) for v in region.examples]
    for found, why in ((made, ""), (other, "result ")):
        side = lower.sides(found, region.function())[-1]
        forms = tuple(map(Form.of, side.operands(values)))
        answer = worker.ask(Trial(side.ways["kernel"], side.eager, side.exact, forms, "cpu"))
        assert answer.startswith(why) and bool(answer) == bool(why)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_scan_is_verified_there_too(worker, reverse):
    side = side_of(kernel_for(torch.float32, torch.float32), 3, 1, reverse, 3)
    forms = tuple(Form.of(torch.rand(shape)) for shape in ((2, 12, 8), (2, 12, 8), (2, 8)))
    assert worker.ask(Trial(side.ways["kernel"], side.eager, side.exact, forms, "cpu")) == ""


@pytest.mark.gpu
def test_on_a_device_a_tuned_model_computes_what_it_did(tmp_path, monkeypatch):
    chooser = Chooser(Cuda(), Table(tmp_path), Worker(), Budget())
    for module in (lower, tuning, fusing):
        monkeypatch.setattr(module, "CHOOSER", chooser)
    for name, build in MODELS.items():
        model, x = build().cuda(), torch.randn(4096, 4096, 16, device="cuda")
        tuned = gatec.tune(model, x)
        assert {n.side for n in tuned.lines} == {"forward", "backward"} and not choose.FAILED, name
        fused = gatec.fuse(model, x)
        for ours, theirs in zip(step(fused, x), step(model, x), strict=True):
            assert distance(ours, theirs) < 1e-4, name
