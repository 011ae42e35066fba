"""The laws of capture: what somebody's forward may do, and that the graph does it too, or says why it cannot."""

import copy
import inspect
import re
import subprocess
import sys
import types
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

import gatec
from gatec.capture import Call, install, trace, unit_of
from gatec.capture.unit import LIMIT
from gatec.errors import Refused
from gatec.verify import distance, tensors


class Block(nn.Module):
    """An MLP with room for whatever a user's forward does around it; subclasses say what."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def mlp(self, x):
        return self.down(F.gelu(self.up(x)))


class Sizes(Block):
    def forward(self, x):
        y = self.mlp(x)
        return y * 2 if x.shape[0] > 3 else y - 1


class Lengths(Block):
    def forward(self, x):
        return self.mlp(x)[: len(x) // 2] if len(x) % 2 == 0 else self.mlp(x)


class Ranks(Block):
    def forward(self, x):
        y = self.mlp(x)
        return y.mean(0) if x.dim() == 2 else y.flatten(0, 1)


class Loop(Block):
    def forward(self, x):
        y = self.mlp(x)
        for i in range(x.size(0)):
            y = y + i * x[i]
        return y


class Flag(Block):
    def forward(self, x, *, double=False, mask=None, scale: float = 1.0):
        y = self.mlp(x) * scale
        if mask is not None:
            y = y.masked_fill(mask, 0)
        return y * 2 if double else y


class Star(Block):
    def forward(self, x, *others, **more):
        y = self.mlp(x)
        for other in others:
            y = y + other
        for name in sorted(more):
            y = y * more[name]
        return y


class Nested(Block):
    def forward(self, batch):
        y = self.mlp(batch["x"])
        return y + batch["pair"][0] * batch["pair"][1]


class Pair(NamedTuple):
    y: torch.Tensor
    hidden: torch.Tensor


class Kinds(Block):
    kind = "tuple"

    def forward(self, x):
        y, n = self.mlp(x), x.sum(-1)
        if self.kind == "tuple":
            return y, n
        if self.kind == "list":
            return [y, (n, None), 3]
        if self.kind == "dict":
            return {"y": y, "more": {"n": n}, "k": "words"}
        if self.kind == "ordered":
            return OrderedDict(y=y, n=n)
        if self.kind == "named":
            return Pair(y, n)
        return BaseModelOutput(last_hidden_state=y, hidden_states=(x, y))


class InPlace(Block):
    def forward(self, x):
        y = self.mlp(x)
        y += x
        y[..., 0] = 0
        y.mul_(2)
        return y.clamp_(-3, 3)


class WritesInput(Block):
    def forward(self, x):
        x += 1
        return self.mlp(x)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Plain() for _ in range(3))
        self.named = nn.ModuleDict({"a": Plain(), "b": Plain()})

    def forward(self, x, which="a"):
        for i, block in enumerate(self.blocks):
            x = x + block(x) * (i + 1)
        for name, block in self.named.items():
            x = block(x) if name == which else x
        return self.blocks[-1](x)


class Plain(Block):
    def forward(self, x):
        return self.mlp(x)


class Counting(Block):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("running", torch.zeros(8), persistent=False)
        self.calls = 0

    def forward(self, x):
        if self.training:
            self.seen += 1
            self.running.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return self.mlp(self.norm(x)) + self.running


class Halve(torch.autograd.Function):
    """Its backward is not the derivative of its forward, so that losing it would be seen."""

    @staticmethod
    def forward(ctx, x):
        return x / 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 100


class Custom(Block):
    def forward(self, x):
        return self.mlp(Halve.apply(x))


class PlainTensor(Block):
    def __init__(self):
        super().__init__()
        self.table = torch.linspace(0, 1, 8)

    def forward(self, x):
        return self.mlp(x * self.table)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = Plain(), nn.Linear(8, 8)

    def forward(self, x):
        return self.block(self.head(self.block(x)))


class Made(Block):
    def forward(self, x):
        mask = torch.ones(x.shape[0], device=x.device).unsqueeze(-1)
        steps = torch.arange(x.size(-1), dtype=x.dtype)
        return self.mlp(x) * mask + steps + x.new_zeros(8)


class Helper(Block):
    def forward(self, x):
        def around(z, by=1):
            return z * by + 1

        return around(self.mlp(x), by=2) if isinstance(x, torch.Tensor) and callable(around) else x


class Early(Block):
    def forward(self, x, skip=False):
        if skip:
            return x
        return self.mlp(x)


class Reshaped(Block):
    def forward(self, x):
        *lead, width = x.shape
        y = self.mlp(x.reshape(-1, width))
        return y.view(*lead, -1).transpose(0, -1)


class Checked(Block):
    def forward(self, x):
        assert x.shape[-1] == 8, "eight features"
        torch._check(x.dim() > 1)
        return self.mlp(x)


class Functional(Block):
    def forward(self, x):
        hidden = F.gelu(F.linear(x, self.up.weight, self.up.bias))
        return F.linear(hidden, self.down.weight, self.down.bias)


@dataclass
class Config:
    scale: float = 2.0
    deep: bool = True


class Configured(Block):
    def __init__(self):
        super().__init__()
        self.config = Config()

    def forward(self, x):
        y = self.mlp(x) * self.config.scale
        return y + x if self.config.deep else y


def kinds(kind):
    def build():
        model = Kinds()
        model.kind = kind
        return model

    return build


def rows(*shape):
    return torch.linspace(-2, 2, 8 * max(1, torch.Size(shape).numel())).reshape(*shape, 8)


X = rows(4)
# model, the inputs it is converted with, other calls that must still come out right
FORWARDS = {
    "sizes": (Sizes, (X,), [(rows(2),), (rows(5),)]),
    "lengths": (Lengths, (X,), [(rows(6),), (rows(5),), (rows(1),)]),
    "ranks": (Ranks, (X,), [(rows(2, 3),), (rows(7),)]),
    "loop": (Loop, (X,), [(rows(1),), (rows(6),)]),
    "flag": (Flag, (X,), [((X,), {"double": True}), ((X,), {"mask": X > 0}), ((X,), {"scale": 0.5, "double": True})]),
    "flag given": (Flag, ((X,), {"double": True}), [((X,), {}), ((X,), {"double": False, "mask": None})]),
    "star": (Star, (X, X + 1), [(X,), (X, X, X), ((X,), {"b": X, "a": X + 2})]),
    "dict in": (Nested, ((), {"batch": {"x": X, "pair": (X, X + 1)}}), [((), {"batch": {"x": X * 2, "pair": [X, X]}})]),
    **{
        f"{k} out": (kinds(k), (X,), [(rows(3),)])
        for k in ("tuple", "list", "dict", "ordered", "named", "model output")
    },
    "in place": (InPlace, (X,), [(rows(3),)]),
    "module lists": (Blocks, (X,), [((X,), {"which": "b"}), (X, "neither")]),
    "buffers": (Counting, (X,), [(rows(3),)]),
    "own backward": (Custom, (X,), [(rows(3),)]),
    "plain tensor": (PlainTensor, (X,), [(rows(3),)]),
    "called twice": (Twice, (X,), [(rows(3),)]),
    "made inside": (Made, (X,), [(rows(3),)]),
    "helper": (Helper, (X,), [(rows(3),)]),
    "early return": (Early, (X,), [((X,), {"skip": True})]),
    "reshaped": (Reshaped, (X,), [(rows(2, 3),), (rows(2, 2, 2),)]),
    "checked": (Checked, (X,), [(rows(3, 2),)]),
    "functional": (Functional, (X,), [(rows(3, 2),)]),
    "configured": (Configured, (X,), [(rows(3),)]),
}
FORWARD = pytest.mark.parametrize(
    "build, inputs, others", FORWARDS.values(), ids=[n.replace(" ", "-") for n in FORWARDS]
)


def form(call):
    """(args, kwargs) of a call, copied: some forwards write into their input."""
    call = copy.deepcopy(call)
    if len(call) == 2 and isinstance(call[0], tuple) and isinstance(call[1], dict):
        return call
    return call, {}


def answer(model, call):
    args, kwargs = form(call)
    torch.manual_seed(0)
    return model(*args, **kwargs)


def same(a, b):
    return type(a) is type(b) and str(skeleton(a)) == str(skeleton(b)) and distance(a, b) == 0


def skeleton(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return type(value).__name__, {k: skeleton(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value).__name__, [skeleton(v) for v in value]
    return value


@FORWARD
def test_a_rewritten_forward_is_the_forward(build, inputs, others):
    """Prune is neutral to the bit, so that nothing but capture can make a difference."""
    model = build().eval()
    gated = gatec.convert(model, "prune", inputs=form(inputs))
    for call in (inputs, *others, inputs, *others):
        assert same(answer(gated, call), answer(model, call))


@FORWARD
def test_in_train_mode_too(build, inputs, others):
    model = build().train()
    gated = gatec.convert(model, "prune", inputs=form(inputs))
    for call in (inputs, *others):
        if min(map(len, tensors(form(call)[0])), default=2) > 1:
            assert same(answer(gated, call), answer(model, call))
    assert {n: v.tolist() for n, v in model.named_buffers()} == {n: v.tolist() for n, v in gated.named_buffers()}


@FORWARD
def test_gradients_are_the_same(build, inputs, others):
    model = build().eval()
    gated = gatec.convert(model, "prune", inputs=form(inputs))
    for call in (inputs, *others):
        for m in (model, gated):
            m.zero_grad()
            loss = sum(t.square().sum() for t in tensors(answer(m, call)))
            if loss.requires_grad:
                loss.backward()
        mine = dict(gated.named_parameters())
        for name, p in model.named_parameters():
            assert (p.grad is None) == (mine[name].grad is None), name
            assert p.grad is None or torch.equal(p.grad, mine[name].grad), name


@FORWARD
def test_inputs_that_need_gradients(build, inputs, others):
    """A block in the middle of a model in training gets values that are no leaves."""
    model = build().eval()
    gated = gatec.convert(model, "prune", inputs=form(inputs))
    for call in (inputs, *others):
        grads = []
        for m in (model, gated):
            args, kwargs = form(call)
            leaf = torch.ones((), requires_grad=True)
            args, kwargs = torch.utils._pytree.tree_map(lambda t: scaled(t, leaf), (args, kwargs))  # noqa: B023
            sum(t.square().sum() for t in tensors(m(*args, **kwargs))).backward()
            grads.append(leaf.grad)
        assert torch.equal(*grads)


def scaled(value, by):
    return value * by if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@FORWARD
def test_conversion_runs_the_forward_on_copies_only(build, inputs, others):
    model = build().train()
    args, kwargs = form(inputs)
    before = [t.clone() for t in tensors((args, kwargs))]
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    plain = {n: sorted(vars(m)) for n, m in model.named_modules()}
    gatec.convert(model, "prune", inputs=(args, kwargs))
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert plain == {n: sorted(vars(m)) for n, m in model.named_modules()}
    assert all(torch.equal(a, b) for a, b in zip(tensors((args, kwargs)), before, strict=True))


def test_a_forward_that_writes_its_input_still_does():
    model = WritesInput().eval()
    gated = gatec.convert(model, "prune", inputs=X.clone())
    mine, yours = X.clone(), X.clone()
    assert torch.equal(gated(mine), model(yours))
    assert torch.equal(mine, yours) and torch.equal(mine, X + 1)


def test_example_inputs_stay_as_they_were():
    given = X.clone()
    gatec.convert(WritesInput(), "prune", inputs=given)
    assert torch.equal(given, X)


def test_buffers_written_in_training_move_once_per_call():
    gated = gatec.convert(Counting().train(), "prune", inputs=X)
    assert gated.seen == 0
    gated(X)
    assert gated.seen == 1
    gated(rows(3))
    gated(rows(2, 3).flatten(0, 1))
    assert gated.seen == 3 and gated.norm.num_batches_tracked == 3
    gated.eval()(X)
    assert gated.seen == 3


class Switched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.scale, self.twice = nn.Linear(8, 16), nn.Linear(16, 8), 1.0, False

    def forward(self, x):
        y = self.down(torch.relu(self.up(x))) * self.scale
        return y + y if self.twice else y


def test_an_attribute_changed_after_conversion_is_noticed():
    gated = gatec.convert(Switched(), "prune", inputs=X)
    before = gated(X)
    gated.scale, gated.twice = 3.0, True
    assert same(gated(X), before * 6)


def test_a_config_changed_after_conversion_is_noticed():
    """The config of a module is read when it is captured; a change of it may not be ignored."""
    model = Configured().eval()
    gated = gatec.convert(model, "prune", inputs=X)
    gated(X)
    model.config.deep = gated.config.deep = False
    assert same(gated(X), model(X))


def test_a_module_that_is_called_twice_is_rewritten_once():
    model = Twice().eval()
    gated = gatec.convert(model, "prune", inputs=X)
    assert [e.site for e in gatec.report(gated).edits if e.verdict == "put"] == ["block"]
    assert len(gatec.gate_parameters(gated)) == 1


def test_a_module_under_two_names_is_rewritten_once():
    block = Plain()
    model = nn.Sequential(block, nn.Tanh(), block).eval()
    gated = gatec.convert(model, "prune", inputs=X)
    assert same(gated(X), model(X))
    assert len(gatec.gate_parameters(gated)) == 1 and gated[0] is gated[2]


HOOKS = {
    "forward": lambda m, seen: m.register_forward_hook(lambda *_: seen.append(1)),
    "forward, changes": lambda m, seen: m.register_forward_hook(lambda m, a, out: out + 1),
    "pre": lambda m, seen: m.register_forward_pre_hook(lambda m, args: (args[0] * 2,)),
    "pre, keywords": lambda m, seen: m.register_forward_pre_hook(lambda m, a, k: ((a[0] + 1,), k), with_kwargs=True),
    "backward": lambda m, seen: m.register_full_backward_hook(lambda *_: seen.append(2)),
}


@pytest.mark.parametrize("where", ["", "blocks.1", "blocks.1.up", "blocks.1.down"], ids=lambda w: w or "model")
@pytest.mark.parametrize("hook", HOOKS.values(), ids=[h.replace(", ", "-") for h in HOOKS])
def test_hooks_are_kept(hook, where):
    model = Blocks().eval()
    seen = []
    hook(model.get_submodule(where), seen)
    gated = gatec.convert(model, "prune", inputs=X)
    seen.clear()
    x = X.clone().requires_grad_()
    mine = gated(x)
    mine.sum().backward()
    hits = list(seen)
    seen.clear()
    yours = model(x)
    yours.sum().backward()
    assert same(mine, yours) and hits == seen


# -- what depends on data -----------------------------------------------------------------------------------------------


class AsksValue(Block):
    def forward(self, x):
        y = self.mlp(x)
        return y if x.sum() > 0 else -y


class TakesItem(Block):
    def forward(self, x):
        return self.mlp(x) * x.max().item()


class NonZero(Block):
    def forward(self, x):
        return self.mlp(x)[x[:, 0].nonzero().flatten()]


class Masked(Block):
    def forward(self, x):
        return self.mlp(x[x[:, 0] > 0])


class Unattached(Block):
    def forward(self, x):
        return self.mlp(x) + Hidden.held()


class Hidden:
    tensor = torch.ones(8)

    @classmethod
    def held(cls):
        return cls.tensor


DATA = {
    "value": (AsksValue, "Python asks for the value of a tensor in it, which depends on data"),
    "item": (TakesItem, "Python asks for the value of a tensor in it, which depends on data"),
    "nonzero": (NonZero, r"its result depends on the values of a tensor \(\.nonzero\)"),
    "mask": (Masked, "a size or a value in it depends on data"),
    "loose tensor": (Unattached, "it uses a tensor that is no parameter, buffer or attribute of the module"),
}


def line_of(kind, text):
    """file:line of `text` in the forward of a class of this file."""
    source, start = __import__("inspect").getsourcelines(kind)
    return f"{__file__}:{start + next(i for i, s in enumerate(source) if text in s)}"


LINES = {"value": "x.sum()", "item": ".item()", "nonzero": ".nonzero()", "mask": "x[x[",
         "loose tensor": "Hidden.held"}  # fmt: skip


@pytest.mark.parametrize("name", DATA, ids=[n.replace(" ", "-") for n in DATA])
def test_what_depends_on_data_is_refused_with_its_line(name):
    kind, words = DATA[name]
    line = re.escape(line_of(kind, LINES[name]))
    with pytest.raises(Refused, match=rf"{words}.*{line}"):
        trace(kind(), kind.forward, Call((X,), {}))
    with pytest.raises(gatec.GatecError, match=rf"(?s){words}.*{line}"):
        gatec.convert(kind(), "prune", inputs=X)


class Around(nn.Module):
    """What cannot be captured itself, around what can."""

    def __init__(self):
        super().__init__()
        self.block = Plain()

    def forward(self, x):
        return self.block(x) * x.abs().max().item()


def test_an_uncapturable_parent_does_not_hide_its_children():
    model = Around().eval()
    gated = gatec.convert(model, "prune", inputs=X)
    assert [e.site for e in gatec.report(gated).edits if e.verdict == "put"] == ["block"]
    assert same(gated(X), model(X))
    assert any("depends on" in words for _, words in gatec.report(gated).missed)


class Later(Block):
    """Asks for data only in a call form that conversion did not see."""

    def forward(self, x, loud=False):
        y = self.mlp(x)
        return y * y.max().item() if loud else y


def test_a_call_that_cannot_be_captured_later_is_an_error_and_not_the_old_forward():
    gated = gatec.convert(Later().eval(), "prune", inputs=X)
    words = (
        r"^gatec: the same rewrite for another call of the module\n"
        r"  found Python asks for the value of a tensor in it, which depends on data \(.*test_capture\.py:\d+\)\n"
        r"  where Later\.forward\n"
        r"  try   pass inputs of this form to gatec\.convert\(\.\.\., inputs=\.\.\.\)$"
    )
    with pytest.raises(gatec.GatecError, match=words):
        gated(X, loud=True)
    assert gated(X).shape == X.shape


class Words(Block):
    def forward(self, x, word=""):
        return self.mlp(x) * (1 + len(word))


class Steps(Block):
    def forward(self, x, steps=0):
        y = self.mlp(x)
        for _ in range(steps):
            y = y + x
        return y


class Powers(Block):
    def forward(self, x, power=0, scale=1.0):
        return self.mlp(x) * 1.1**power / scale


def test_numbers_that_change_become_values_of_the_graph():
    model = Powers().eval()
    gated = gatec.convert(model, "prune", inputs=X)
    for power in range(2 * LIMIT):
        assert same(gated(X, power=power, scale=1 + power / 7), model(X, power=power, scale=1 + power / 7))
    assert len(unit_of(gated).graphs) <= 3


ALWAYS = [
    (Words, {"word": "w"}, r"part 3 of the arguments changes from call to call, now 'w+'"),
    (Steps, {"steps": 1}, r"the decision at \S*test_capture\.py:\d+ keeps changing \([\d, ]+\)"),
]


@pytest.mark.parametrize(("kind", "step", "words"), ALWAYS, ids=["argument", "decision"])
def test_too_many_forms_of_calls_name_what_keeps_changing(kind, step, words):
    gated = gatec.convert(kind().eval(), "prune", inputs={"x": X, **step})
    (name, one), calls = next(iter(step.items())), sum(map(len, unit_of(gated).graphs.values()))
    words = (
        rf"^gatec: at most {LIMIT} different calls of one rewritten module\n  found {words}\n"
        rf"  where {kind.__name__}\.forward\n  try   call it with fewer argument forms, or convert the module around it$"
    )
    with pytest.raises(gatec.GatecError, match=words):
        for times in range(calls + 1, 3 * LIMIT):
            gated(X, **{name: one * times})
    assert same(gated(X, **{name: one * 3}), gated(X, **{name: one * 3}))


@dataclass
class Fused:
    """A rewrite that changes no meaning."""

    name: str = "fused"
    only_fuses: bool = True

    def __call__(self, module, graph, call):
        return None


def test_a_unit_that_was_only_fused_falls_back_and_counts():
    model = Later().eval()
    fused = copy.deepcopy(model)
    unit = install(fused)
    unit.rewrites.append(Fused())
    assert same(fused(X), model(X)) and unit.fallbacks == 0
    assert same(fused(X, loud=True), model(X, loud=True)) and unit.fallbacks == 1
    many = copy.deepcopy(model)
    many.__class__ = Words
    unit = install(many)
    unit.rewrites.append(Fused())
    plain = Words().eval()
    plain.load_state_dict(model.state_dict())
    for power in range(2 * LIMIT):
        assert same(many(X, word="w" * power), plain(X, word="w" * power))
    assert unit.fallbacks == LIMIT


def test_the_graph_is_kept_between_calls():
    gated = gatec.convert(Plain().eval(), "prune", inputs=X)
    unit = unit_of(gated)
    for n in range(1, 40):
        gated(rows(n))
    assert sum(map(len, unit.graphs.values())) == 1


class Default(Block):
    """Takes a value or makes one, as many libraries do: default(x, fallback)."""

    def forward(self, x, other=None):
        value = self.mlp(x) if other is None else other
        return value() if callable(value) else value


class Library(Block):
    """Calls a function of a library, which keeps what it found for a size."""

    def forward(self, x):
        return self.mlp(x).reshape(sys.modules["cachinglib"].doubled(x.shape[0])[0] // 2, -1)


def test_a_tensor_is_not_callable():
    gated = gatec.convert(Default().eval(), "prune", inputs=X)
    assert [n.target for n in trace(gated, Default.forward, Call((X,), {})).graph.nodes][-2] == "down"


def test_no_proxy_gets_into_the_cache_of_another_library(monkeypatch):
    library = types.ModuleType("cachinglib")
    exec("import functools\n@functools.lru_cache\ndef doubled(n): return [n * 2]", vars(library))
    monkeypatch.setitem(sys.modules, "cachinglib", library)
    for model in (Library(), Library()):
        graph = trace(model, Library.forward, Call((X,), {})).graph
        graph.lint()
        assert any(getattr(n.target, "__name__", "") == "mul" for n in graph.nodes)
    assert library.doubled(3) == [6] and library.doubled.cache_info().hits == 0


def test_decisions_about_sizes_are_held():
    graph = trace(Sizes(), Sizes.forward, Call((X,), {})).graph
    held = [n for n in graph.nodes if getattr(n.target, "__name__", "") == "hold"]
    assert held and held[0].args[2] == line_of(Sizes, "x.shape[0]")


def test_calls_are_kept_and_not_looked_into():
    graph = trace(Plain(), Plain.forward, Call((X,), {})).graph
    assert [n.target for n in graph.nodes if n.op == "call_module"] == ["up", "down"]
    assert all("val" in n.meta for n in graph.nodes if n.op != "output")


def test_a_forward_on_the_object_itself_is_refused():
    model = Plain()
    model.forward = lambda x: model.mlp(x)
    with pytest.raises(gatec.GatecError, match="its forward was replaced on the object itself"):
        gatec.convert_(model, "prune", inputs=X)


class Busy(Block):
    def forward(self, x):
        y = self.mlp(x)
        return torch.tensor([1.0, 2.0]).sum() * y + torch.as_tensor(0.5)


def test_tracing_leaves_torch_as_it_was():
    import builtins

    before = {n: getattr(torch, n) for n in dir(torch)}, builtins.isinstance, torch.autograd.Function.__dict__["apply"]
    for kind in (Busy, AsksValue):
        with suppress(Refused):
            trace(kind(), kind.forward, Call((X,), {}))
        after = (
            {n: getattr(torch, n) for n in dir(torch)},
            builtins.isinstance,
            torch.autograd.Function.__dict__["apply"],
        )
        assert after[1:] == before[1:] and all(after[0][n] is v for n, v in before[0].items())
        assert "isinstance" not in globals()
    assert type(Busy()) is Busy


@pytest.mark.parametrize("kind", [AsksValue, Plain], ids=lambda k: k.__name__)
def test_tracing_leaves_classes_as_they_were(kind):
    model = kind()
    with suppress(Refused):
        trace(model, kind.forward, Call((X,), {}))
    assert type(model) is kind and type(model.up) is nn.Linear


def test_a_rewritten_forward_has_the_signature_of_the_original():
    gated = gatec.convert(Switched(), "prune", inputs=X)
    assert inspect.signature(gated.forward) == inspect.signature(Switched().forward)


class Finest(Block):
    """Bakes the dtype of a parameter in, on a call that shows none of it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 8)

    def forward(self, ids):
        x = self.table(ids)
        return self.mlp(x) + torch.finfo(x.dtype).eps + torch.zeros(8, dtype=x.dtype)


def test_a_model_that_moves_to_another_dtype_is_captured_again():
    model, ids = Finest().eval(), torch.arange(4)[None]
    gated = gatec.convert(model, "prune", inputs=ids)
    gated(ids)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        mine, yours = gated.to(dtype)(ids), model.to(dtype)(ids)
        assert mine.dtype == dtype and same(mine, yours)


def test_a_traced_process_can_be_profiled():
    """A process of its own: where Python would hang, it hangs for good."""
    code = """
import sys, torch, gatec
net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
net, x = gatec.convert(net, "glu", inputs=torch.ones(4, 8)), torch.ones(4, 8)
seen = []
sys.setprofile(lambda *event: seen.append(event))
[net(x) for _ in range(3)]
sys.setprofile(None)
print(len(seen) > 100)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr
