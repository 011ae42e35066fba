"""Budgets on what a model costs: counted, measured with a clock that counts, tightened step by step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gatec
from gatec.clocks import Alive, clock, peak, seconds
from gatec.inputs import one_call
from gatec.pruning import FORMS
from gatec.verify import distance
from gatec.zoo import load

OF = ["parameters", "multiplications", "memory", "latency"]
IMAGE = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)


class Work(TorchDispatchMode):
    """Counts the numbers that operators make."""

    def __init__(self):
        super().__init__()
        self.done = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.done += 0 if func.is_view else sum(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
        return out


def counting(run, *args, **kwargs):
    """A timer that gives the same for the same operators on any machine."""
    with Work() as work:
        run(*args, **kwargs)
    return work.done * 1e-6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.deep, self.mix = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 12, 1)
        self.side, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(20, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = torch.cat([self.mix(self.deep(x)), self.side(x)], 1)
        return self.head(x.mean((2, 3)))


def gated(form="hard", seed=0, **options):
    torch.manual_seed(seed)
    return gatec.prune(Net().eval(), IMAGE, form=form, **options)


def half(model):
    gatec.close(model, {n: range(0, g.size, 2) for n, g in gatec.channel_gates(model).items()})
    return model


def spent(model, of, x=IMAGE):
    if of == "parameters":
        return sum(p.numel() for p in model.parameters())
    if of == "latency":
        with torch.no_grad():
            return counting(model, x)
    with torch.no_grad():
        return peak(model, x) + sum(t.numel() * t.element_size() for t in model.state_dict().values())


@pytest.mark.parametrize("of", ["parameters", "memory", "latency"])
def test_the_count_is_what_is_left(of):
    """What is counted of the gated model is what the compacted one costs."""
    model = half(gated())
    whole = gatec.profile(model, IMAGE, timer=counting)
    small = gatec.compact(model, IMAGE).eval()
    assert whole[of] == pytest.approx(spent(Net().eval(), of), rel=0.01)
    assert float(gatec.budget(model, of, decided=True)) == pytest.approx(spent(small, of) / whole[of], rel=0.01)


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("form", FORMS)
def test_gates_feel_every_budget(of, form):
    model = gated(form).train()
    gatec.profile(model, IMAGE, timer=counting)
    assert float(gatec.budget(model, of, decided=True)) == pytest.approx(1)
    gatec.budget(model, of).backward()
    grads = [gate.weight.grad for gate in gatec.channel_gates(model).values()]
    assert any((g > 0).all() for g in grads) and all((g >= 0).all() for g in grads)


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("to", [0.3, 0.6])
def test_every_budget_is_met(of, to):
    model = gated()
    gatec.profile(model, IMAGE, timer=counting)
    gatec.close(model, to=to, of=of, by="magnitude")
    assert to - 0.15 < float(gatec.budget(model, of, decided=True)) <= to


@pytest.mark.parametrize("of", OF)
def test_a_budget_is_met_by_the_compacted_model(of):
    """Measured on a compacted copy, whatever the table says; widths of one group make steps."""
    model = gated()
    gatec.profile(model, IMAGE, timer=counting)
    if of == "latency":  # operators that take longer than they took alone
        for table in gatec.pruning.gating.gates_of(model).costs["latency"].tables:
            table.taken **= 2
    gatec.close(model, to=0.5, of=of, by="magnitude", inputs=IMAGE, timer=counting)
    small = gatec.compact(model, IMAGE).eval()
    if of != "multiplications":
        assert 0.4 < spent(small, of) / spent(Net().eval(), of) <= 0.51


@pytest.mark.parametrize(
    "spec",
    [
        "transformers:gpt2",
        *(pytest.param(s, marks=pytest.mark.sweep) for s in ("transformers:llama", "timm:mobilenetv3_small_050")),
    ],
)
def test_other_peoples_models(spec):
    """Norms that count features that are gone cost more than those that do not: the compacted copy says so."""
    model = load(spec).eval()
    args, kwargs = one_call(model)
    gated = gatec.prune(model, (args, kwargs))
    whole = gatec.profile(gated, (args, kwargs), timer=counting)
    gatec.close(gated, to=0.6, of="latency", by="magnitude", inputs=(args, kwargs), timer=counting)
    with torch.no_grad():
        left = counting(gatec.compact(gated, (args, kwargs)).eval(), *args, **kwargs) / whole["latency"]
    assert 0.5 < left <= 0.6 * 1.02


def test_equal_operators_are_run_once():
    runs = []

    def timer(run, *args, **kwargs):
        runs.append(run)
        return 1.0

    torch.manual_seed(0)
    layers = [nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)]
    x = torch.randn(3, 8)
    few, many = (gatec.prune(nn.Sequential(*copy.deepcopy(own)), x) for own in (layers[1:], layers))
    gatec.profile(few, x, timer=timer)
    first, runs[:] = len(runs), []
    gatec.profile(many, x, timer=timer)
    assert len(runs) == first > 9


def test_what_training_has_closed_is_measured_once():
    model, runs = half(gated()), []
    before = {n: g.closed() for n, g in gatec.channel_gates(model).items()}
    gatec.close(
        model, to=0.9, of="parameters", by="magnitude", inputs=IMAGE, timer=lambda *a, **k: runs.append(a) or 1.0
    )
    assert all(torch.equal(g.closed(), before[n]) for n, g in gatec.channel_gates(model).items()) and not runs


def test_copies_keep_what_was_measured():
    model = gated()
    gatec.profile(model, IMAGE, timer=counting)
    other = half(copy.deepcopy(model))
    assert (
        float(gatec.budget(other, "latency", decided=True)) < 1 == float(gatec.budget(model, "latency", decided=True))
    )


def test_other_inputs_are_other_budgets():
    model = gated()
    whole = [gatec.profile(model, IMAGE[:n], timer=counting) for n in (1, 2)]
    assert whole[1]["multiplications"] == 2 * whole[0]["multiplications"]
    assert whole[1]["memory"] > whole[0]["memory"] and whole[1]["parameters"] == whole[0]["parameters"]


def test_memory_is_what_is_there_at_once():
    def run(x):
        y = x + 1
        z = (y * 2).sum()
        del y
        return z + x[:2].sum()

    assert peak(run, torch.zeros(1000)) == 8004  # y, y * 2 and the sum
    alive = Alive()
    x = torch.zeros(3)
    kept = alive.note([x], [(x[1:], "outside"), (y := torch.ones(2), "made")])
    del y
    assert kept == ["made"] and alive.note([x], []) == []


def test_a_real_clock():
    assert clock() <= clock()
    assert seconds(torch.add, torch.ones(2), 1) > 0


# -- schedules --------------------------------------------------------------------------------------------------------


def test_schedules():
    even = [gatec.schedule(p / 10, 0.4, end=1.0, power=1) for p in range(11)]
    assert even == pytest.approx([1 - 0.06 * p for p in range(11)])
    cubic = [gatec.schedule(p / 10, 0.4, begin=0.2, end=0.7) for p in range(11)]
    assert cubic[:3] == [1, 1, 1] and cubic[7:] == pytest.approx([0.4] * 4)
    assert cubic[4] == pytest.approx(0.4 + 0.6 * 0.6**3) and sorted(cubic, reverse=True) == cubic
    assert gatec.schedule(0.0, 0.2, first=0.5) == 0.5


@pytest.mark.parametrize("bad", [{"to": 0}, {"to": 1.2}, {"to": 0.5, "begin": 0.8}, {"to": 0.5, "power": 0}])
def test_a_schedule_says_what_it_wants(bad):
    with pytest.raises(gatec.GatecError, match=r"0 < to <= first, 0 <= begin < end <= 1 and a power above 0"):
        gatec.schedule(0.5, **bad)


# -- annealed gates, group lasso --------------------------------------------------------------------------------------


def test_polarised_gates_become_steps():
    model = gated("polarised")
    gate = next(iter(gatec.channel_gates(model).values()))
    gate.weight.data = torch.linspace(0, 1, gate.size)
    soft = gate.settled()
    assert 0 < soft[4] < soft[8] < soft[-1] == 1
    gatec.anneal(model, 1.0)
    assert float(gate.eps) == pytest.approx(0.1 / 200)
    assert (gate.settled()[4:] > soft[4:]).sum() == gate.size - 5  # all but the last, which was open already
    gatec.anneal(model, float("inf"))
    assert torch.equal(gate.settled(), (gate.weight != 0).float())
    gate.weight.grad = None
    gate().sum().backward()
    assert gate.weight.grad.isfinite().all()


def test_sigmoid_gates_become_steps():
    model = gated("sigmoid")
    gate = next(iter(gatec.channel_gates(model).values()))
    assert torch.equal(gate(), torch.ones(gate.size))
    gate.weight.data = torch.linspace(-1, 1, gate.size)
    gatec.anneal(model, float("inf"))
    assert torch.equal(gate.settled(), (gate.weight > 0) / torch.sigmoid(torch.tensor(0.5)))
    gatec.anneal(model, 1.0)
    gate().sum().backward()
    assert gate.weight.grad.isfinite().all() and (gate.weight.grad > 0).any()


@pytest.mark.parametrize("form", ["polarised", "sigmoid"])
def test_annealed_gates_learn_and_are_folded(form):
    """A penalty and gates that harden: they end at two values, and what is between is folded."""
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    wanted = x[:, :2].tanh()
    model = gatec.prune(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)), x, form=form)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(150):
        gatec.anneal(model, step / 150)
        optimizer.zero_grad()
        away = gatec.budget(model) / gatec.schedule(step / 150, 0.4) - 1
        (F.mse_loss(model(x), wanted) + 0.3 * away.clamp(min=0)).backward()
        optimizer.step()
    small = gatec.compact(model.eval(), x)
    assert small[0].out_features < 24
    assert distance(small(x), model(x)) < 1e-5


@pytest.mark.parametrize("on, by", [("weights", "magnitude"), ("scales", "scale")])
def test_group_lasso_shrinks_whole_slots(on, by):
    model = gated()
    model.deep.weight.data.zero_()
    raw = {n: p.detach().clone() for n, p in model.named_parameters()}
    before = gatec.group_lasso(model, on)
    before.backward()
    before = before.detach()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if on == "scales":
        assert moved == {"norm.weight"}
        assert float(before) == pytest.approx(float(raw["norm.weight"].abs().sum()))
    else:
        assert moved == {n for n in raw if raw[n].dim() > 1 and n != "deep.weight"}
    with torch.no_grad():
        model.norm.weight[:8] = model.first.weight[:8] = 1e-6
    gatec.close(model, to=0.7, of="parameters", by=by)
    gate = next(g for g in gatec.channel_gates(model).values() if g.size == 16)
    assert gate.closed()[:4].any() and not gate.closed()[8:].any()


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda g: gatec.budget(g, "latency"), r"operators that are timed\n  found no times.*\n  try   gatec.profile"),
        (lambda g: gatec.close(g, to=0.5, by="magnitude", of="latency"), r"operators that are timed"),
        (lambda g: gatec.close(g, to=0.5), r"gates that have learned\n  found all of them as they were born"),
        (lambda g: gatec.close(g, to=1e-9, of="memory", by="magnitude"), r"a budget of at least 0.\d+.*\n  found to=1e-09"),
        (lambda g: gatec.profile(g, IMAGE[:, :1]), r"example inputs that Net takes"),
        (lambda g: gatec.profile(Net(), IMAGE), r"a model with channel gates"),
        (lambda g: gatec.group_lasso(g, "luck"), r"what a penalty is on\n  found 'luck'"),
        (lambda g: gatec.group_lasso(gatec.prune(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(1, 4)), "scales"),
         r"scales that go with gated slots"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_words(call, words):
    model = gated()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(gatec.GatecError, match=words):
        call(model)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
