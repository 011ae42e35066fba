"""The laws that every gate of passes/ obeys. A new file there is tested with no line added here."""

import ast
import copy
import io
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import gatec
from gatec.catalog import parse, spell
from gatec.verify import distance

PASSES = sorted((Path(__file__).parents[1] / "passes").glob("*.py"))
ALL = [
    pytest.param(gate, case, id=f"{name}-{case.name.replace(' ', '-')}")
    for name, gate in gatec.gates().items()
    for case in gate.cases
]
PUT = [p for p in ALL if not p.values[1].refuses]
REFUSED = [p for p in ALL if p.values[1].refuses]
NEUTRAL = [p for p in PUT if not p.values[0].gives_up(p.values[1].options)]
MOVING = [p for p in PUT if p.values[0].neutral and p not in NEUTRAL]  # neutral but for their options


def each(cases, of):
    """Of each gate's cases every `of`-th, from its first on; the others are swept."""
    numbers, found = Counter(), []
    for p in cases:
        gate = id(p.values[0])
        swept = pytest.param(*p.values, id=p.id, marks=pytest.mark.sweep)
        found.append(swept if numbers[gate] % of else p)
        numbers[gate] += 1
    return found


DRIFTING = [p for p in PUT if not p.values[0].neutral]


def built(case, dtype=torch.float32):
    torch.manual_seed(1)
    return case.model().eval().to(dtype), tuple(x.to(dtype) for x in case.inputs)


def converted(gate, case, model, inputs):
    return gatec.convert(model, gate, inputs=inputs, **case.options)


def count(model, verdict="put"):
    return sum(e.verdict == verdict for e in gatec.report(model).edits)


def state(model):
    """Everything of a model that a user could notice: values, names, flags, classes, plain attributes."""
    values = {n: v.clone() for n, v in model.state_dict().items()}
    flags = [(n, type(m), m.training, sorted(vars(m))) for n, m in model.named_modules()]
    needs = [(n, p.requires_grad, p.grad) for n, p in model.named_parameters()]
    return values, flags, needs


def same(a, b):
    """Equal to the bit, NaN included."""
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(equal(a[0][n], b[0][n]) for n in a[0])


def equal(a, b):
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(1.5), b.nan_to_num(1.5))


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# -- put, left ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate, case", PUT)
def test_put_where_promised_and_nowhere_else(gate, case):
    model, inputs = built(case)
    assert count(converted(gate, case, model, inputs)) == case.put


@pytest.mark.parametrize("gate, case", REFUSED)
def test_refused_in_the_words_promised(gate, case):
    model, inputs = built(case)
    with pytest.raises(gatec.GatecError, match=case.refuses):
        converted(gate, case, model, inputs)


@pytest.mark.parametrize("gate, case", ALL)
def test_why_says_what_convert_does(gate, case):
    model, inputs = built(case)
    before = state(model)
    try:
        edits = gatec.why(model, gate, inputs=inputs, **case.options)
    except gatec.GatecError as e:  # a model that cannot be converted at all
        assert case.refuses and case.refuses in str(e)
    else:
        assert sum(e.verdict == "put" for e in edits) == (0 if case.refuses else case.put)
        assert not case.refuses or any(case.refuses in e.why for e in edits if e.verdict != "put")
        assert all(e.why for e in edits)
    assert same(state(model), before)


@pytest.mark.parametrize("gate", gatec.gates().values(), ids=gatec.gates())
def test_a_gate_shows_where_it_goes_and_says_what_it_gives_up(gate):
    assert gate.cases and gate.summary
    assert any(not c.refuses for c in gate.cases)
    assert len({c.name for c in gate.cases}) == len(gate.cases)
    assert gate.neutral or gate.born.startswith("drifts: ")


# -- born neutral -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gate, case", NEUTRAL)
def test_born_neutral_to_the_bit(gate, case, dtype):
    model, inputs = built(case, dtype)
    gated = converted(gate, case, model, inputs)
    assert torch.equal(gated(*inputs), model(*inputs))
    assert gatec.report(gated).drift == 0
    assert all(e.drift == 0 for e in gatec.report(gated).edits if e.verdict == "put")


@pytest.mark.parametrize("gate, case", DRIFTING)
def test_equal_to_rounding_in_float64(gate, case):
    model, inputs = built(case, torch.float64)
    gated = converted(gate, case, model, inputs)
    assert distance(gated(*inputs), model(*inputs)) <= 1e-12
    assert gatec.report(gated).drift <= 1e-12


@pytest.mark.parametrize("gate, case", DRIFTING)
def test_drift_is_measured_at_every_edit(gate, case):
    model, inputs = built(case)
    edits = [e for e in gatec.report(converted(gate, case, model, inputs)).edits if e.verdict == "put"]
    assert all(e.drift is not None and 0 <= e.drift <= 1e-12 for e in edits)


@pytest.mark.parametrize("gate, case", MOVING)
def test_what_is_given_up_stands_in_the_report_beside_the_drift(gate, case):
    model, inputs = built(case)
    gated = converted(gate, case, model, inputs)
    moved = distance(gated(*inputs), model(*inputs))
    assert moved > 0 and gatec.report(gated).drift == pytest.approx(moved)
    for edit in (e for e in gatec.report(gated).edits if e.verdict == "put"):
        assert edit.drift > 0 and edit.note.endswith(f"; {gate.gives_up(case.options)}")


def unmoved(gate, case, model, inputs, rounding):
    """What a gated model is compared with elsewhere, and how closely: its original, or itself where options move it."""
    if not gate.neutral:
        return rounding, model
    return 0, model if not gate.gives_up(case.options) else converted(gate, case, model, inputs)


def added(gated, model):
    known = dict(model.named_parameters())
    return {n: p for n, p in gated.named_parameters() if n not in known}


@pytest.mark.parametrize("gate, case", PUT)
def test_what_is_added_learns_within_two_steps(gate, case):
    """A product whose one factor is born zero gives the other one a slope from the second step on."""
    model, inputs = built(case)
    if not gate.neutral:  # all experts on leaves a router no choice, nor do experts that are all the same
        more = {name: value for name, value in {"top_k": 2, "noise": 0.5}.items() if name in gate.defaults}
        case = gatec.Case(case.name, case.model, case.inputs, case.put, options={**case.options, **more})
    gated = converted(gate, case, model, inputs)
    new = added(gated, model)
    assert new
    moved = set()
    for _ in range(2):
        gated.zero_grad()
        gated(*inputs).square().sum().backward()
        for name, parameter in new.items():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            moved |= {name} if parameter.grad.abs().max() > 0 else set()
        assert moved
        torch.optim.SGD(new.values(), 0.1).step()
    assert moved == set(new)


@pytest.mark.parametrize("gate, case", NEUTRAL)
def test_old_parameters_learn_as_before(gate, case):
    model, inputs = built(case)
    gated = converted(gate, case, model, inputs)
    for m in (gated, model):
        m(*inputs).square().sum().backward()
    mine = dict(gated.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mine[name].grad, parameter.grad, msg=name)


# -- the user's model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("gate, case", each(ALL, 2))
def test_original_untouched(gate, case, train):
    model, inputs = built(case)
    model.train(train)
    before, output, random = state(model), model(*inputs), torch.get_rng_state()
    try:
        converted(gate, case, model, inputs)
    except gatec.GatecError:
        assert case.refuses
    assert same(state(model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert equal(model(*inputs), output)


@pytest.mark.parametrize("gate, case", REFUSED)
def test_in_place_refusal_leaves_no_trace(gate, case):
    model, inputs = built(case)
    before = state(model)
    with pytest.raises(gatec.GatecError):
        gatec.convert_(model, gate, inputs=inputs, **case.options)
    assert same(state(model), before)


@pytest.mark.parametrize("gate, case", each(PUT, 2))
def test_in_place_is_the_same_object(gate, case):
    model, inputs = built(case)
    copied = converted(gate, case, model, inputs)
    kind, names = type(model), set(model.state_dict())
    gated = gatec.convert_(model, gate, inputs=inputs, **case.options)
    assert gated is model and isinstance(gated, kind)
    assert type(gated).__name__ == kind.__name__
    assert names <= set(gated.state_dict())
    assert set(copied.state_dict()) == set(gated.state_dict())
    assert torch.equal(copied(*inputs), gated(*inputs))


@pytest.mark.parametrize("gate, case", PUT)
def test_copies_share_nothing(gate, case):
    model, inputs = built(case)
    gated = converted(gate, case, model, inputs)
    assert not {p.data_ptr() for p in gated.parameters()} & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("gate, case", each(PUT, 2))
def test_converting_twice_is_converting_once(gate, case):
    model, inputs = built(case)
    once = converted(gate, case, model, inputs)
    before = state(once)
    places = [e.site for e in gatec.report(once).edits if e.verdict == "put"]
    with pytest.raises(gatec.GatecError, match="already"):
        converted(gate, case, once, inputs)
    again = {e.site: e for e in gatec.why(once, gate, inputs=inputs, **case.options)}
    assert all(again[p].verdict == "left" and "already" in again[p].why for p in places)
    assert same(state(once), before)


# -- the gated model lives on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate, case", each(PUT, 2))
def test_other_batches_ranks_and_dtypes_are_captured_again(gate, case):
    model, inputs = built(case, torch.float64)
    gated = converted(gate, case, model, inputs)
    bound, model = unmoved(gate, case, model, inputs, 1e-12)
    for other in (
        tuple(x[:1] for x in inputs),
        tuple(torch.cat([x, x, x[:1]]) for x in inputs),
        tuple(x[None] for x in inputs),
        tuple(x.expand(3, 2, *x.shape) for x in inputs),
        tuple(x.flip(-1).t().contiguous().t() for x in inputs),
    ):
        assert distance(gated(*other), model(*other)) <= bound
    assert gated(*inputs).dtype == torch.float64


@pytest.mark.parametrize("gate, case", each(PUT, 2))
def test_to_another_dtype(gate, case):
    first, inputs = built(case)
    whole = converted(gate, case, first, inputs)
    for dtype, bound in ((torch.float64, 1e-12), (torch.bfloat16, 0.05), (torch.float16, 0.01)):
        gated = copy.deepcopy(whole).to(dtype)
        bound, model = unmoved(gate, case, copy.deepcopy(first), inputs, bound)
        model, given = model.to(dtype), tuple(x.to(dtype) for x in inputs)
        assert gated(*given).dtype == dtype
        assert distance(gated(*given), model(*given)) <= bound, dtype


@pytest.mark.parametrize("gate, case", PUT)
def test_no_rows_at_all(gate, case):
    model, inputs = built(case)
    gated = converted(gate, case, model, inputs)
    nothing = tuple(x[:0] for x in inputs)
    assert gated(*nothing).shape == model(*nothing).shape


@pytest.mark.parametrize("gate, case", each(PUT, 2))
def test_copies_and_files_keep_the_rewrite(gate, case):
    model, inputs = built(case)
    gated = converted(gate, case, model, inputs)
    scrambled(gated, model)
    copied, saved = copy.deepcopy(gated), pickled(gated)
    for how, other in {"copied": copied, "saved": saved, "both": copy.deepcopy(saved)}.items():
        assert set(other.state_dict()) == set(gated.state_dict()), how
        assert torch.equal(other(*inputs), gated(*inputs)), how
        assert not torch.equal(other(*inputs), model(*inputs)), how
        assert count(other) == case.put, how
        scrambled(other, model)
        assert not torch.equal(other(*inputs), gated(*inputs)), how


def scrambled(gated, model):
    """Move what was added away from its birth, so that losing it would be seen."""
    for parameter in added(gated, model).values():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
    for module in gated.modules():  # an all-on mixture does not depend on its router
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.add_(torch.randn_like(module.bias))


@pytest.mark.parametrize("gate, case", each(PUT, 2))
def test_state_dicts_travel(gate, case):
    model, inputs = built(case)
    gated = converted(gate, case, model, inputs)
    scrambled(gated, model)
    fresh = converted(gate, case, *built(case))
    fresh.load_state_dict(gated.state_dict())
    assert torch.equal(fresh(*inputs), gated(*inputs))


@pytest.mark.parametrize("gate, case", each(PUT, 2))
def test_train_mode(gate, case):
    model, inputs = built(case)
    gated = converted(gate, case, model, inputs)
    assert not gated.training
    bound, model = unmoved(gate, case, model, inputs, 1e-5)
    assert distance(gated.train()(*inputs), model.train()(*inputs)) <= bound
    born = converted(gate, case, built(case)[0].train(), inputs)
    assert all(m.training for m in born.modules())
    assert distance(born(*inputs), model(*inputs)) <= bound


@pytest.mark.parametrize("gate, case", each(PUT, 99))
def test_the_original_is_what_is_left_when_gates_are_compiled(gate, case):
    model, inputs = built(case)
    gated = converted(gate, case, model, inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Dynamo says where a model breaks its graph
            ours = torch.compile(gated, backend="eager")(*inputs)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(ours, gated(*inputs))


# -- words --------------------------------------------------------------------------------------------------------------


def sentences(file):
    """The constant pieces of every refusal in a file of passes/, but for those of `merge`, which are tests/test_merge.py's."""
    tree = ast.parse(file.read_text())
    tree.body = [part for part in tree.body if getattr(part, "name", "") not in ("merge", "fold")]
    for node in ast.walk(tree):
        name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else name
        if name in ("refuse", "Refused"):
            text = node.args[0]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            yield node.lineno, [p.value for p in parts if isinstance(p, ast.Constant)]


SENTENCES = [
    pytest.param(file.stem, parts, id=f"{file.name}:{line}") for file in PASSES for line, parts in sentences(file)
]


@pytest.mark.parametrize("name, parts", SENTENCES)
def test_every_refusal_is_some_cases_refuses(name, parts):
    said = [c.refuses for c in gatec.gates()[name].cases if c.refuses]
    longest = max(parts, key=len)
    assert any(s in p or longest.strip() in s for s in said for p in parts), (
        f"no case of {name} refuses with {longest!r}"
    )


PIPELINES = [
    "glu", "glu,prune", "moe(experts=8,top_k=2)", "glu(variant=swiglu),moe(experts=4,top_k=4),prune",
    "moe(experts=4,seed=3)", "glu(variant=auto)",
]  # fmt: skip


@pytest.mark.parametrize("text", PIPELINES)
def test_pipelines_are_text_that_round_trips(text):
    assert spell(parse(text)) == text


@pytest.mark.parametrize("text", ["glu , prune", " glu,prune ", "glu,\nprune", "glu,prune,"])
def test_spaces_mean_nothing(text):
    assert spell(parse(text)) == "glu,prune"


@pytest.mark.parametrize("gate, case", each(PUT, 2))
def test_options_round_trip_as_text(gate, case):
    text = spell([(gate, case.options)])
    assert parse(text) == [(gate, case.options)]
    model, inputs = built(case)
    by_text = gatec.convert(model, text, inputs=inputs)
    assert torch.equal(by_text(*inputs), converted(gate, case, model, inputs)(*inputs))


@pytest.mark.parametrize(
    "value", ["a,b", "a)b", "1", "True", "None", " x ", "", "a=b", "it's", 1.5, -3, None, True, (1, 2)]
)
def test_any_option_value_round_trips(value):
    gate = gatec.gates()["glu"]
    assert parse(spell([(gate, {"variant": value})])) == [(gate, {"variant": value})]


def forms(model, inputs):
    yield gatec.convert(model, "prune", inputs=inputs)
    yield gatec.convert(model, pass_="prune", inputs=inputs)
    yield gatec.convert(model, inputs=inputs, **{"pass": "prune"})
    yield gatec.convert(model, ["prune"], inputs=inputs)
    yield gatec.convert(model, gatec.gates()["prune"], inputs=inputs)
    yield gatec.convert(model, "prune", inputs=list(inputs))
    yield gatec.convert(model, "prune", inputs=(inputs, {}))
    yield gatec.convert(model, "prune", inputs={"input": inputs[0]})
    yield gatec.convert(model, "prune")


def test_every_way_to_name_a_pass_is_the_same():
    model, inputs = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), (torch.randn(3, 8),)
    names = {tuple(m.state_dict()) for m in forms(model, inputs)}
    assert len(names) == 1 and names != {tuple(model.state_dict())}


def test_only_keeps_to_the_sites_it_names():
    model = nn.ModuleDict({"a": mlp(), "b": mlp()})
    whole = nn.Sequential(model["a"], model["b"])
    gated = gatec.convert(whole, "prune", inputs=torch.randn(2, 8), only="^1")
    assert [e.site for e in gatec.report(gated).edits] == ["1.2"]
    assert [n for n in gated.state_dict() if n not in whole.state_dict()] == ["1.0.gate"] or all(
        n.startswith("1.") for n in gated.state_dict() if n not in whole.state_dict()
    )


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


HIDDEN = [name for name, gate in gatec.gates().items() if any("down" in p.holes for p in gate.patterns)]


@pytest.mark.parametrize("name", HIDDEN)
def test_a_row_of_layers_gets_a_gate_at_every_hidden_layer(name):
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)]
    model, x = nn.Sequential(*layers).double(), torch.randn(5, 8).double()
    options = {"experts": 4, "top_k": 4} if name == "moe" else {}
    gated = gatec.convert(model, name, inputs=x, **options)
    edits = gatec.report(gated).edits
    assert [e.site for e in edits if e.verdict == "put"] in (
        ["2", "4", "6"],
        ["2", "6"],
    )  # a mixture uses both layers up
    assert all(e.why for e in edits if e.verdict != "put")
    assert distance(gated(x), model(x)) <= 1e-12


class Layer(nn.Module):
    """A transformer's layer: every pass has a place in it."""

    def __init__(self):
        super().__init__()
        self.norm, self.mlp, self.qkv, self.out = nn.LayerNorm(8), mlp(), nn.Linear(8, 24), nn.Linear(8, 8)
        self.near = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.positions = nn.Embedding(5, 8)

    def attend(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x):
        x = x + self.positions(torch.arange(x.shape[1]))
        x = x + self.attend(x)
        x = x + self.near(x.transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(x)


def test_every_pass_has_a_place_in_a_transformer():
    model, x = nn.Sequential(Layer(), Layer()), torch.randn(3, 5, 8)
    for name in gatec.gates():
        assert any(e.verdict == "put" for e in gatec.why(model, name, inputs=x)), name


@cache
def layers():
    torch.manual_seed(0)
    return nn.Sequential(Layer()).double(), torch.randn(3, 5, 8).double()


@cache
def with_one(name):
    model, x = layers()
    return gatec.convert(model, name, inputs=x)


NAMES = list(gatec.gates())
# Of the two orders of a pair one is swept: which one goes by turns.
ROWS = [
    pytest.param(a, b, marks=() if (i < j) == ((i + j) % 2 == 0) else pytest.mark.sweep)
    for i, a in enumerate(NAMES) for j, b in enumerate(NAMES) if a != b
]  # fmt: skip


@pytest.mark.parametrize("first, second", ROWS)
def test_passes_in_a_row(first, second):
    """One after the other is both at once; whichever cannot follow says so."""
    model, x = layers()
    text = {"moe": "moe(experts=4,top_k=4)"}
    names = text.get(first, first), text.get(second, second)
    once = gatec.convert(model, ",".join(names), inputs=x)
    assert distance(once(x), model(x)) <= 1e-12
    try:
        twice = gatec.convert(with_one(names[0]), names[1], inputs=x)
    except gatec.GatecError:
        assert not [e for e in gatec.report(once).edits if e.gate == second and e.verdict == "put"]
    else:
        assert [*twice.state_dict()] == [*once.state_dict()]
        assert torch.equal(twice(x), once(x))
        assert torch.equal(pickled(twice)(x), once(x))
