"""Edits at module boundaries: results of any class, caches, forwards that cannot be captured, other people's models."""

# ruff: noqa: E501 - one case per line

import copy
import dataclasses
import io
import itertools
import warnings
from collections import namedtuple

import pytest
import torch
from torch import nn

import gatec
from gatec.capture import unit_of
from gatec.inputs import example_inputs
from gatec.match import Flow
from gatec.pipeline import prepare
from gatec.verify import distance
from gatec.zoo import load

X = torch.linspace(-2, 2, 32).reshape(4, 8)
Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Record:
    note: str
    out: torch.Tensor
    rest: tuple = ()


class Cache:
    """An object that no tracer looks into, written by the forward."""

    def __init__(self):
        self.seen = []


class Block(nn.Module):
    """Returns what `form` makes of its result; decides on data, so that nothing can capture it."""

    def __init__(self, form=lambda y: y):
        super().__init__()
        self.linear, self.form = nn.Linear(8, 8), form

    def forward(self, x, cache=None, *, scale=1.0, **extra):
        if cache is not None:
            cache.seen.append(x)
        y = x + scale * self.linear(x).tanh()
        return self.form(y if bool((y == y).all()) else -y)


class Loop(nn.Module):
    def __init__(self, form=lambda y: y, take=lambda r: r):
        super().__init__()
        self.layers, self.take = nn.ModuleList([Block(form), Block(form)]), take

    def forward(self, x, cache=None, **extra):
        for layer in self.layers:
            x = self.take(layer(x, cache=cache, **extra) if cache is not None else layer(x, **extra))
        return x


FORMS = {
    "a tensor": (lambda y: y, lambda r: r),
    "a tuple": (lambda y: (y, None, 3), lambda r: r[0]),
    "a list of a tuple": (lambda y: ["note", (y, y)], lambda r: r[1][0]),
    "a dict": (lambda y: {"note": "x", "out": y}, lambda r: r["out"]),
    "a named tuple": (lambda y: Pair(y, 1), lambda r: r.first),
    "a dataclass": (lambda y: Record("x", y, (y,)), lambda r: r.out),
}


@pytest.mark.parametrize("form, take", FORMS.values(), ids=[f.replace(" ", "-") for f in FORMS])
def test_a_block_may_return_anything(form, take):
    """The first tensor of the result is gated wherever it stands, and whoever held the result holds the same kind."""
    model = Loop(form, take).eval()
    gated = gatec.convert(model, "skip", inputs=X)
    assert [e.site for e in gatec.report(gated).edits if e.verdict == "put"] == ["layers.0", "layers.1"]
    assert torch.equal(gated(X), model(X))
    with torch.no_grad():  # whose gradients are printed differently
        result, plain = gated.layers[0](X), model.layers[0](X)
    assert type(result) is type(plain)
    assert repr(result) == repr(plain)
    with torch.no_grad():
        gated.layers[0].gate.zero_()
    assert torch.equal(take(gated.layers[0](X)), X)
    assert torch.equal(gated(X), take(model.layers[1](X)))


def test_a_tensor_that_a_result_holds_twice_is_replaced_twice():
    gated = gatec.convert(Loop(*FORMS["a dataclass"]).eval(), "skip", inputs=X)
    with torch.no_grad():
        gated.layers[0].gate.zero_()
    result = gated.layers[0](X)
    assert result.out is result.rest[0] and torch.equal(result.out, X)


def test_objects_and_constants_are_passed_on_and_guard_nothing():
    model = Loop().eval()
    gated = gatec.convert(model, "skip", inputs=X)
    cache = Cache()
    for scale in (0.5, 2, True, None):
        extra = {} if scale is None else {"scale": scale}
        assert torch.equal(gated(X, cache=cache, **extra), model(X, cache=Cache(), **extra))
    assert len(cache.seen) == 8 and cache.seen[0] is X
    for form in (X[:1], X.double()[None], X.expand(3, 2, 4, 8)):
        assert torch.equal(gated.to(form.dtype)(form), copy.deepcopy(model).to(form.dtype)(form))
    assert len(unit_of(gated.layers[0]).shells) <= 6  # one for each argument structure, whatever is in it


def test_a_module_called_without_a_tensor_is_refused_in_words():
    class Source(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(8, 8)

        def forward(self, x):
            return self.out(x)

    gated = gatec.convert(Source(), "wrap", inputs=X)
    with pytest.raises((gatec.GatecError, TypeError)):
        gated.out("no tensor")


# -- places ---------------------------------------------------------------------------------------------------------


class Experts(nn.Module):
    """Side by side: the modules of a list that all take the same value are no chain."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)])

    def forward(self, x):
        return sum(layer(x) for layer in self.layers)


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.embed = nn.Linear(8, 8), nn.Linear(8, 8), nn.Embedding(16, 8)

    def forward(self, x):
        y = self.one(x) + self.two(x)  # of one value, but neither of the other
        return y + self.embed(torch.arange(x.shape[0], device=x.device))  # of its size only


class Cubic(nn.Module):
    """x + x ** 3 is no branch: nothing that could be named stands in it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        y = self.linear(x)
        return y + 0.1 * y**3


class Steps(nn.Module):
    """A state that starts at zero is no stream, though what enters it was compared with zero."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        state = torch.zeros_like(x[0])
        for row in torch.where(x == 0, x, self.linear(x)).unbind():
            state = 0.5 * state + row
        return state


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8))

    def forward(self, x):
        return self.layers(x)


NOWHERE = [("skip", Experts), ("residual", Added), ("residual", Cubic), ("residual", Steps), ("skip", Norms),
           ("skip", lambda: nn.Sequential(nn.Sequential(nn.Linear(8, 4), nn.ReLU())))]  # fmt: skip


@pytest.mark.parametrize("name, model", NOWHERE, ids=range(len(NOWHERE)))
def test_what_only_looks_like_a_place_is_none(name, model):
    assert gatec.why(model().eval(), name, inputs=X) == []
    with pytest.raises(gatec.GatecError, match=f"^gatec: a place for {name} in .*\n  found no such place\n"):
        gatec.convert(model().eval(), name, inputs=X)


class Post(nn.Module):
    """A residual addition in a child that is handed both sides of it, as BERT has."""

    def __init__(self):
        super().__init__()
        self.dense, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, hidden, x):
        return self.norm(self.dense(hidden) + x)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.output = nn.Linear(8, 8), Post()

    def forward(self, x):
        return self.output(self.inner(x).relu(), x)


def test_a_branch_is_seen_across_modules():
    gated = gatec.convert(Outer(), "residual", inputs=X)
    assert [e.site for e in gatec.report(gated).edits] == ["output.dense"]
    assert "output.dense.scale" in gated.state_dict()


def test_names_are_the_same_in_training_and_in_eval():
    class Dropped(Outer):
        def forward(self, x):
            return x + nn.functional.dropout(self.inner(x), 0.5, self.training)

    names = []
    for train in (False, True):
        torch.manual_seed(0)
        names.append(list(gatec.convert(Dropped().train(train), "residual", inputs=X).state_dict()))
    assert names[0] == names[1] and "inner.scale" in names[0]


def test_a_gate_is_no_place_for_another():
    mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    gated = gatec.convert(mlp, "glu,wrap", inputs=X)
    assert [e.site for e in gatec.report(gated).edits if e.gate == "wrap"] == ["0", "2"]


def test_a_hole_may_be_a_class_of_modules():
    def norm(x: torch.Tensor, layer: nn.LayerNorm | nn.GroupNorm):
        return layer(x)

    def after(site, here, layer):
        return here * site.add("tilt", lambda: nn.Parameter(torch.ones(())), near=layer)

    gate = gatec.Gate(before=(norm,), after=after)
    gated = gatec.convert(Norms(), gate, inputs=X)
    assert [e.site for e in gatec.report(gated).edits] == ["layers.0", "layers.1"]
    assert {"layers.0.tilt", "layers.1.tilt"} <= set(gated.state_dict())


def test_a_hole_of_ones_own():
    class Tanh(gatec.Hole):
        @classmethod
        def fillings(cls, flow, term, x):
            if term.op == "tanh" and term.args[0].op == "linear":
                yield gatec.Part(term.args[0].data.path), term.args[0].args[0]

    def squashed(x: torch.Tensor, layer: Tanh):
        return layer(x)

    gate = gatec.Gate(
        before=(squashed,),
        after=lambda site, here, layer: here * site.add("tilt", lambda: nn.Parameter(torch.ones(())), near=layer),
    )
    gated = gatec.convert(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), gate, inputs=X)
    assert [e.site for e in gatec.report(gated).edits] == ["0"]


def test_an_annotation_that_says_nothing_is_refused():
    def wrong(x: torch.Tensor, layer: int):
        return layer(x)

    with pytest.raises(
        gatec.GatecError,
        match=r"^gatec: pattern parameters annotated Tensor, Linear, Activation, with a Hole or with a class of modules\n  found layer: <class 'int'>\n  where .*wrong$",
    ):
        gatec.Gate(before=(wrong,), after=lambda site, here: here)


def test_chains_are_found_without_any_graph():
    class Deciding(Loop):
        def forward(self, x):
            return super().forward(x if bool((x == x).all()) else -x)

    program = prepare(Deciding().eval(), X)
    assert program.graph_of("") is None and program.graph_of("layers.0") is None
    assert [c.path for c in Flow(program.canon()).blocks.values()] == ["layers.0", "layers.1"]


# -- one module, edited inside and outside ----------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


def stack():
    torch.manual_seed(0)
    return nn.Sequential(Layer(), Layer())


NAMES = ["skip", "residual", "wrap", "prune", "glu"]


def scrambled(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for p in gatec.gate_parameters(model):
            p.add_(torch.randn_like(p))
    return model


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


ORDERS = [*itertools.permutations(NAMES, 2), tuple(NAMES), tuple(reversed(NAMES))]


@pytest.mark.parametrize(
    "order", [pytest.param(o, id="-".join(o), marks=pytest.mark.sweep if i % 2 else ()) for i, o in enumerate(ORDERS)]
)
def test_inside_and_outside_in_any_order(order, tmp_path):
    model = stack()
    try:
        gated = gatec.convert(model, ",".join(order), inputs=X)
    except gatec.GatecError:
        return
    assert distance(gated(X), model(X)) <= 1e-6
    scrambled(gated)
    wanted = gated(X)
    assert not torch.equal(wanted, model(X))
    for unit in filter(None, map(unit_of, gated.modules())):  # every edit is replayed on a fresh capture
        unit.graphs.clear()
        unit.shells.clear()
    assert torch.equal(gated(X), wanted)
    assert torch.equal(copy.deepcopy(gated)(X), wanted) and torch.equal(pickled(gated)(X), wanted)
    again = gatec.load(gatec.save(gated, tmp_path), stack(), inputs=X)
    assert torch.equal(again(X), wanted) and list(again.state_dict()) == list(gated.state_dict())
    for name in {e.gate for e in gatec.report(gated).edits if e.verdict == "put"}:
        edits = [e for e in gatec.why(gated, name, inputs=X) if e.verdict != "near"]
        assert edits and all(
            e.why.endswith("was put here already") for e in edits if e.verdict == "left" and "already" in e.why
        )
        assert not [e for e in edits if e.verdict == "put"]


@pytest.mark.parametrize("name", ["skip", "residual", "wrap"])
def test_fused_exported_compiled_all_the_same(name, tmp_path):
    gated = scrambled(gatec.convert(stack(), name, inputs=X))
    fused = gatec.fuse(gated, X, everywhere=True)
    assert distance(fused(X), gated(X)) <= 1e-6
    gatec.export(gated, tmp_path / "model.onnx", inputs=X)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = torch.compile(gated, backend="aot_eager", fullgraph=True)(X)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(ours, gated(X))


def test_hooks_and_names_stay():
    model = stack()
    seen = []
    model[0].register_forward_hook(lambda m, a, y: seen.append(y.shape))
    gated = gatec.convert(model, "skip,residual", inputs=X)
    gated(X)
    assert len(seen) >= 1 and isinstance(gated[0], Layer) and type(gated[0]).__name__ == "Layer"
    assert set(model.state_dict()) < set(gated.state_dict())


def test_nothing_is_left_of_a_pass_that_fails_later():
    model = stack()
    before = {n: (type(m), sorted(vars(m))) for n, m in model.named_modules()}
    with pytest.raises(gatec.GatecError):
        gatec.convert_(model, "skip,residual,moe(experts=8,top_k=9)", inputs=X)
    assert {n: (type(m), sorted(vars(m))) for n, m in model.named_modules()} == before
    assert set(model.state_dict()) == set(stack().state_dict())


def test_only_chooses_the_layers_to_wrap():
    gated = gatec.convert(stack(), "wrap", inputs=X, only=r"^1\.mlp\.0$")
    assert [e.site for e in gatec.report(gated).edits] == ["1.mlp.0"]
    assert [n for n in gated.state_dict() if "feature_gate" in n] == ["1.mlp.0.feature_gate"]


def test_a_closed_block_lets_its_input_through_and_may_open_again():
    gated = gatec.convert(stack(), "skip", inputs=X)
    with torch.no_grad():
        gated[0].gate.fill_(0.2)
    assert torch.equal(gated[:1](X), X)
    gated(X).square().sum().backward()
    assert gated[0].gate.grad.abs() > 0 and gated[1].gate.grad.abs() > 0


# -- other people's models --------------------------------------------------------------------------------------------

PLACES = {
    "transformers:llama": {"residual": 4, "skip": 2, "attention": 2, "wrap": 15},
    "transformers:gpt2": {"residual": 4, "skip": 2, "attention": 2, "wrap": 9},
    "transformers:bert": {"residual": 4, "skip": 2, "attention": 2, "wrap": 14},
    "transformers:vit": {"residual": 4, "skip": 2, "attention": 2, "wrap": 14},
    "transformers:bart": {"residual": 10, "skip": 4, "attention": 6, "wrap": 33},
    "transformers:whisper": {"residual": 10, "skip": 4, "attention": 6, "wrap": 35},
    "transformers:mamba": {"residual": 2, "skip": 2, "attention": 0, "wrap": 7},
    "transformers:gpt_neox": {"residual": 4, "skip": 2, "attention": 2, "wrap": 9},
    "transformers:t5": {"residual": 10, "skip": 4, "attention": 6, "wrap": 33},
    "timm:convnext_atto": {"residual": 12, "skip": 12, "attention": 0, "wrap": 41},
    "timm:resnet18": {"residual": 5, "skip": 5, "attention": 0, "wrap": 21},
}  # fmt: skip
DEFAULT = [f"transformers:{n}" for n in ("llama", "bart")] + ["timm:resnet18"]  # the others are swept
MODELS = {}


def built(spec):
    if spec not in MODELS:
        MODELS[spec] = load(spec)
    return MODELS[spec]


EACH = [pytest.param(s, id=s.partition(":")[2], marks=() if s in DEFAULT else pytest.mark.sweep) for s in PLACES]


@pytest.mark.parametrize("name", ["residual", "skip", "attention", "wrap"])
@pytest.mark.parametrize("spec", EACH)
def test_other_peoples_models(spec, name):
    model, wanted = built(spec), PLACES[spec][name]
    if not wanted:
        with pytest.raises(gatec.GatecError, match="found no such place"):
            gatec.convert(model, name)
        return
    gated = gatec.convert(model, name)
    args, kwargs = example_inputs(model)
    with torch.no_grad():
        assert distance(gated(*args, **kwargs), model(*args, **kwargs)) == 0
    edits = gatec.report(gated).edits
    assert len(edits) == wanted and all(e.verdict == "put" and e.drift in (0, None) for e in edits), str(
        gatec.report(gated)
    )


GREEDY = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
CAUSAL = ["transformers:llama", "transformers:gpt2", "transformers:bart", "transformers:mamba"]
OUTSIDE = {"residual": "residual", "skip": "skip", "attention": "attention(source=projection,per=head)", "wrap": "wrap"}
ONE = {}


def gated_by(spec, text):
    if (spec, text) not in ONE:
        ONE[spec, text] = gatec.convert(built(spec), text)
    return ONE[spec, text]


def asked(spec, batch, padded):
    torch.manual_seed(batch)
    ids = torch.randint(5, 200, (batch, 6))
    mask = torch.ones_like(ids)
    mask[0, :3] = 1 - padded
    more = {"decoder_start_token_id": 0} if "bart" in spec else {}
    return ids * mask, {"attention_mask": mask, **more, **GREEDY}


def generated(spec, batch, padded):
    """What a model without gates generates."""
    if (spec, batch, padded) not in ONE:
        ids, options = asked(spec, batch, padded)
        ONE[spec, batch, padded] = built(spec).generate(ids, **options)
    return ONE[spec, batch, padded]


SWEPT = pytest.mark.sweep


@pytest.mark.parametrize(
    "batch, padded",
    [pytest.param(1, 0, marks=SWEPT), pytest.param(1, 1, marks=SWEPT), pytest.param(4, 0, marks=SWEPT), (4, 1)],
)
@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("spec", CAUSAL, ids=[s.partition(":")[2] for s in CAUSAL])
def test_generates_the_same_with_a_cache(spec, name, batch, padded):
    if not PLACES[spec][name]:
        return
    gated = gated_by(spec, OUTSIDE[name])
    ids, options = asked(spec, batch, padded)
    assert torch.equal(gated.generate(ids, **options), generated(spec, batch, padded))


@pytest.mark.parametrize("name", OUTSIDE)
def test_with_open_gates_a_cache_makes_no_difference(name):
    gated = scrambled(gatec.convert(load("transformers:llama").double(), OUTSIDE[name]))
    ids, options = asked("llama", 2, 1)
    assert torch.equal(gated.generate(ids, **options), gated.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("spec", CAUSAL[:3], ids=[s.partition(":")[2] for s in CAUSAL[:3]])
def test_a_gate_that_reads_the_input_of_attention_generates_with_a_cache(spec):
    model, gated = built(spec), gatec.convert(built(spec), "attention")
    ids, options = asked(spec, 2, 1)
    assert torch.equal(gated.generate(ids, use_cache=False, **options), model.generate(ids, use_cache=False, **options))
    assert torch.equal(gated.generate(ids, **options), model.generate(ids, **options))


@pytest.mark.parametrize(
    "text", ["residual(scale=channel,form=sigmoid),skip,wrap", "attention(source=projection,per=head)", "attention"]
)
@pytest.mark.parametrize("spec", ["transformers:llama", "transformers:bert"], ids=["llama", "bert"])
def test_saved_and_loaded(spec, text, tmp_path):
    gated = scrambled(gatec.convert(built(spec), text))
    again = gatec.load(gatec.save(gated, tmp_path), built(spec))
    args, kwargs = example_inputs(gated)
    with torch.no_grad():
        assert distance(again(*args, **kwargs), gated(*args, **kwargs)) == 0
        assert distance(gated(*args, **kwargs), built(spec)(*args, **kwargs)) > 0


def test_a_report_says_what_the_gate_reads():
    edits = gatec.report(gated_by("transformers:llama", OUTSIDE["attention"])).edits
    assert all(str(e).endswith("put   drift 0.0e+00; its gate reads what goes into the projection") for e in edits)
    assert [e.why for e in gatec.why(built("transformers:llama"), "attention", source="projection")] == [
        "could be put; its gate reads what goes into the projection"
    ] * 2


def test_training_a_gated_model():
    gated = gatec.convert(built("transformers:llama"), "residual,skip,attention,wrap").train()
    ids = torch.randint(5, 200, (2, 6))
    optimizer, losses = torch.optim.SGD(gated.parameters(), lr=1e-2), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = gated(ids, labels=ids, use_cache=False).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in gatec.gate_parameters(gated))
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
