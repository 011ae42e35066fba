"""Channel gates on any group: born neutral, closed by budget, and removed exactly from other people's models."""

import copy
import io
import types

import numpy as np
import pytest
import torch
from sampled import swept
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.inputs import one_call
from gatec.program import doubled
from gatec.pruning import FORMS
from gatec.pruning.exact import exactly
from gatec.verify import distance
from gatec.zoo import load

IMAGE = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)
TOKENS = torch.linspace(-2, 2, 2 * 5 * 16).reshape(2, 5, 16)


class Block(nn.Module):
    """Attention with fewer keys than queries, an MLP with a packed gate, norms of both kinds, a residual stream."""

    def __init__(self, width=16, heads=4, shared=2, size=4):
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, size
        self.norm, self.last = nn.LayerNorm(width), nn.RMSNorm(width)
        self.q, self.kv = nn.Linear(width, heads * size), nn.Linear(width, 2 * shared * size)
        self.out, self.up, self.down = nn.Linear(heads * size, width), nn.Linear(width, 40), nn.Linear(20, width)

    def forward(self, x):
        y = self.norm(x)
        q = self.q(y).view(*y.shape[:2], self.heads, self.size).transpose(1, 2)
        k, v = self.kv(y).view(*y.shape[:2], 2, self.shared, self.size).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)
        x = x + self.out(y.reshape(*x.shape[:2], self.heads * self.size))
        a, b = self.up(self.last(x)).chunk(2, -1)
        return x + self.down(F.silu(a) * b)


def tower():
    return nn.Sequential(nn.Linear(16, 16), Block(), Block(), nn.Linear(16, 5))


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.GroupNorm(4, 12), nn.SiLU(),
        nn.Conv2d(12, 10, 1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4),
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(16, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.cell(x)[0])


MODELS = {"tower": (tower, TOKENS), "network": (network, IMAGE), "LSTM": (Recurrent, TOKENS)}
MODEL = pytest.mark.parametrize("build, x", MODELS.values(), ids=MODELS)
FORM = pytest.mark.parametrize("form", FORMS)


def made(build, seed=0):
    torch.manual_seed(seed)
    model = build().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return model


def half(model, seed=0, share=0.5):
    """Close slots of every group by chance."""
    draw = np.random.default_rng(seed)
    gatec.close(model, {name: draw.random(gate.size) < share for name, gate in gatec.channel_gates(model).items()})
    return model


@FORM
@MODEL
def test_born_neutral(build, x, form):
    model = made(build)
    gated = gatec.prune(model, x.double(), form=form)
    assert distance(gated(x.double()), model(x.double())) < 1e-15
    names = {n for n in gated.state_dict() if not n.startswith("channel_gates.")}
    assert names == set(model.state_dict()) and type(gated) is type(model)
    assert float(gatec.budget(gated, decided=True)) == pytest.approx(1)


@FORM
@MODEL
@pytest.mark.parametrize("seed", range(3))
def test_compacted_equals_gated(build, x, form, seed):
    x = x.double()
    gated = half(gatec.prune(made(build, seed), x, form=form), seed)
    small = gatec.compact(gated, x)
    assert distance(small(x), gated(x)) <= 1e-12
    assert distance(small(x[:1]), gated(x[:1])) <= 1e-12
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in made(build).parameters())
    assert not hasattr(small, "channel_gates") and set(small.state_dict()) == set(made(build).state_dict())
    assert not any("_gatec_masks" in vars(m) for m in small.modules())


@MODEL
def test_what_is_left_can_be_pruned_again(build, x):
    x = x.double()
    small = gatec.compact(half(gatec.prune(made(build), x)), x)
    again = gatec.prune(small, x)
    assert torch.equal(gatec.compact(small, x)(x), small(x))
    assert distance(again(x), small(x)) < 1e-15
    same = gatec.compact(again, x)
    assert [p.shape for p in same.parameters()] == [p.shape for p in small.parameters()]
    smaller = gatec.compact(half(again, 1), x)
    assert distance(smaller(x), again(x)) <= 1e-12


@MODEL
def test_nothing_of_the_gated_model_moves(build, x):
    x = x.double()
    gated = half(gatec.prune(made(build), x))
    before, y = copy.deepcopy(gated.state_dict()), gated(x)
    gatec.compact(gated, x)
    assert torch.equal(gated(x), y)
    assert all(torch.equal(v, before[n]) for n, v in gated.state_dict().items())


@FORM
@MODEL
def test_gates_and_weights_learn(build, x, form):
    gated = gatec.prune(made(build), x.double(), form=form).train()
    (gated(x.double()).square().sum() + gatec.budget(gated)).backward()
    for name, gate in gatec.channel_gates(gated).items():
        assert gate.weight.grad is not None and gate.weight.grad.abs().sum() > 0, name
    assert {id(p) for p in gatec.gate_parameters(gated)} == {id(g.weight) for g in gatec.channel_gates(gated).values()}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_goes_on(kind):
    """What is left is trained as it would have been with the closed slots beside it."""
    x = TOKENS.double()
    gated = gatec.prune(made(tower), x, kinds=["channels"])
    rest = [p for n, p in gated.named_parameters() if not n.startswith("channel_gates")]
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind([{"params": rest, "lr": 0.01, **options}, {"params": gatec.gate_parameters(gated), "lr": 0.1}])
    for _ in range(3):
        optimizer.zero_grad()
        gated(x).square().sum().backward()
        optimizer.step()
    half(gated)
    small = gatec.compact(gated, x)
    other = gatec.remapped(optimizer, gated, small)
    assert [len(g["params"]) for g in other.param_groups] == [len(rest)] and other.param_groups[0]["lr"] == 0.01
    gates = gatec.gate_parameters(gated)
    for model, its in ((gated, optimizer), (small, other)):
        its.zero_grad()
        model(x).square().sum().backward()
        for gate in gates:
            gate.grad = None
        its.step()
    assert distance(small(x), gated(x)) < 1e-12


def test_an_optimizer_of_another_model_is_told():
    x = TOKENS.double()
    gated = half(gatec.prune(made(tower), x))
    small = gatec.compact(gated, x)
    with pytest.raises(gatec.GatecError, match="an optimizer of the parameters of this Sequential"):
        gatec.remapped(torch.optim.SGD(made(tower).parameters(), 0.1), gated, small)


def test_a_closed_gate_still_learns():
    """Where nobody but readers looks at a slot, its gate sees what it would give, and may open again."""
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    gated = gatec.prune(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)), x)
    ((name, gate),) = gatec.channel_gates(gated).items()
    gatec.close(gated, {name: range(16)})
    gated(x).square().sum().backward()
    assert (gate.weight.grad[:16] != 0).any()
    small = gatec.compact(gated, x)
    assert small[0].out_features == 16 and distance(small(x), gated(x)) < 1e-6


def test_one_draw_for_all_readers():
    x = TOKENS
    gated = gatec.prune(made(tower).float(), x, form="hard_concrete").train()
    assert torch.equal(gated(x), gated(x))
    before = gated(x)
    with torch.no_grad():
        for p in gatec.gate_parameters(gated):
            p.add_(0)
    assert not torch.equal(gated(x), before)


@MODEL
def test_copies_and_pickles_keep_the_gates(build, x):
    x = x.double()
    gated = half(gatec.prune(made(build), x))
    kept = io.BytesIO()
    torch.save(gated, kept)
    kept.seek(0)
    for other in (copy.deepcopy(gated), torch.load(kept, weights_only=False)):
        assert torch.equal(other(x), gated(x))
        half(other, 5)
        assert not torch.equal(other(x), gated(x))


@MODEL
def test_saved_and_loaded(build, x, tmp_path):
    x = x.double()
    gated = half(gatec.prune(made(build), x))
    small = gatec.compact(gated, x)
    gatec.save(gated, tmp_path / "gated")
    gatec.save(small, tmp_path / "small")
    assert torch.equal(gatec.load(tmp_path / "gated", made(build, 1), inputs=x)(x), gated(x))
    loaded = gatec.load(tmp_path / "small", made(build, 1))
    assert torch.equal(loaded(x), small(x))
    assert torch.equal(
        gatec.compact(half(gatec.prune(loaded, x), 1), x)(x), gatec.compact(half(gatec.prune(small, x), 1), x)(x)
    )


@MODEL
def test_a_narrowed_model_can_be_pickled_and_learns(build, x):
    x = x.double()
    small = gatec.compact(half(gatec.prune(made(build), x)), x)
    kept = io.BytesIO()
    torch.save(small, kept)
    kept.seek(0)
    assert torch.equal(torch.load(kept, weights_only=False)(x), small(x))
    small(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


@pytest.mark.parametrize("by", ["weight", "taylor", "magnitude"])
@pytest.mark.parametrize("of", ["multiplications", "parameters"])
def test_a_budget_is_met(by, of):
    x = TOKENS.double()
    gated = gatec.prune(made(tower), x)
    gated(x).square().sum().backward()
    torch.optim.SGD(gatec.gate_parameters(gated), 1e-6).step()
    gatec.close(gated, to=0.5, of=of, by=by)
    assert 0.3 < float(gatec.budget(gated, of, decided=True)) <= 0.5
    if of == "parameters":
        small, whole = gatec.compact(gated, x), made(tower)
        left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in whole.parameters())
        assert left == pytest.approx(float(gatec.budget(gated, of, decided=True)), abs=0.15)  # equal widths stay equal


def test_groups_keep_a_multiple():
    gated = gatec.prune(made(network), IMAGE.double(), kinds=["channels"])
    gatec.close(gated, to=0.9, multiple=2, by="magnitude")
    for gate in gatec.channel_gates(gated).values():
        assert int((~gate.closed()).sum()) % 2 == 0


def test_training_closes_what_is_not_needed():
    """A budget and a penalty; what is compacted is what was trained."""
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    wanted = x[:, :2].tanh()
    gated = gatec.prune(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)), x)
    gates = {id(p) for p in gatec.gate_parameters(gated)}
    optimizer = torch.optim.Adam(
        [
            {"params": gatec.gate_parameters(gated), "lr": 0.02},
            {"params": [p for p in gated.parameters() if id(p) not in gates], "lr": 0.01},
        ]
    )
    for _ in range(150):
        optimizer.zero_grad()
        (F.mse_loss(gated(x), wanted) + 0.3 * (gatec.budget(gated) - 0.4).clamp(min=0)).backward()
        optimizer.step()
    small = gatec.compact(gated, x)
    assert small[0].out_features < 32
    assert distance(small(x), gated(x)) < 1e-5


def test_heads_widths_and_norms_are_mended():
    x = TOKENS.double()
    gated = gatec.prune(made(tower), x)
    names = {g.kind: g.name for g in gatec.groups(made(tower), x).free}
    assert set(names) == {"heads", "head dims", "channels", "residual"}
    gatec.close(gated, {names["residual"]: range(6), names["head dims"]: [0]})
    small = gatec.compact(gated, x)
    assert small[1].norm.normalized_shape == (10,) and type(small[1].norm).__name__ == "LayerNorm"
    assert distance(small(x), gated(x)) <= 1e-12


def test_all_closed_keeps_one_slot():
    x = IMAGE.double()
    gated = gatec.prune(made(network), x, only="^0|model")
    gatec.close(gated, {name: np.ones(gate.size, bool) for name, gate in gatec.channel_gates(gated).items()})
    small = gatec.compact(gated, x)
    assert small[0].out_channels == 1
    assert distance(small(x), gated(x)) <= 1e-12
    assert any("one is kept where all are closed" in e.why for e in gatec.report(small).edits)


def test_a_report_says_what_went():
    x = IMAGE.double()
    small = gatec.compact(half(gatec.prune(made(network), x)), x)
    last = gatec.report(small).edits[-1]
    assert "parameters" in last.why and "multiplications" in last.why and "ms here" in last.why and last.drift <= 1e-12


def test_a_report_says_what_each_layer_costs():
    x = IMAGE.double()
    model = made(network)
    small = gatec.compact(half(gatec.prune(model, x)), x)
    found = gatec.report(small)
    sizes = {n.site: n for n in found.narrowed}
    assert list(sizes) == ["", "0", "1", "3", "4", "6", "10"]
    for path, one in sizes.items():
        for side, m in enumerate((model, small)):
            layer = m.get_submodule(path)
            assert one.parameters[side] == sum(p.numel() for p in layer.parameters()) and one.seconds[side] > 0
    first = small[0]
    assert sizes["0"].multiplications == (2 * 64 * 8 * 27, 2 * 64 * first.weight.numel())
    assert sizes["0"].memory == (8 * (8 * 28 + 2 * 8 * 64), 8 * (first.out_channels * (28 + 2 * 64)))
    assert sizes[""].multiplications[1] == sum(n.multiplications[1] for p, n in sizes.items() if p)
    assert sizes[""].memory[1] < sizes[""].memory[0]
    assert "<h2>Before and after</h2>" in found.html() and found.data()["narrowed"][1]["site"] == "0"
    assert "memory" in found.edits[-1].why


def test_a_page_shows_the_widths():
    x = IMAGE.double()
    small = gatec.compact(half(gatec.prune(made(network), x)), x)
    report = gatec.report(small)
    assert all(left <= size for _, _, left, size in report.widths) and any(
        left < size for _, _, left, size in report.widths
    )
    assert "<h2>Widths</h2>" in report.html() and f"{report.widths[0][2]} of {report.widths[0][3]}" in report.html()
    assert report.data()["widths"][0]["before"] == report.widths[0][3]
    assert gatec.groups(small, x).svg().startswith("<svg")


def test_health_of_gates():
    x = IMAGE.double()
    gated = gatec.prune(made(network), x)
    first = next(iter(gatec.channel_gates(gated)))
    assert all("no gradient has reached it yet" in g.warnings for g in gatec.health(gated).gates)
    gated.train()(x).square().sum().backward()
    assert gatec.health(gated).well
    gatec.close(gated, {first: np.ones(gatec.channel_gates(gated)[first].size, bool)})
    assert "all of its slots are closed" in str(gatec.health(gated))


def test_a_compacted_model_is_exported(tmp_path):
    x = TOKENS
    small = gatec.compact(half(gatec.prune(made(tower).float(), x)), x)
    gatec.export(small, tmp_path / "small.onnx", inputs=x)


class Rearranged(nn.Module):
    """Splits heads by a table of sizes that it keeps twice, and copies itself by one of them."""

    def __init__(self, heads=4):
        super().__init__()
        self.lengths = {"heads": heads, "size": None}
        self._lengths = tuple(self.lengths.items())

    def __getstate__(self):
        return {"lengths": self.lengths}

    def __setstate__(self, state):
        self.__init__(state["lengths"]["heads"])

    def forward(self, x):
        return x.unflatten(-1, (dict(self._lengths)["heads"], -1)).transpose(1, 2)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.split, self.out = nn.Linear(16, 48), Rearranged(), nn.Linear(16, 5)

    def forward(self, x):
        q, k, v = map(self.split, self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_numbers_inside_of_tables_follow(tmp_path):
    x = TOKENS.double()
    gated = gatec.prune(made(Table), x)
    heads = next(g for g in gatec.groups(made(Table), x).free if g.kind == "heads")
    gatec.close(gated, {heads.name: [0, 2]})
    small = gatec.compact(gated, x)
    assert small.split.lengths == {"heads": 2, "size": None} and small.qkv.out_features == 24
    assert distance(small(x), gated(x)) <= 1e-12
    gatec.save(small, tmp_path / "small")
    again = gatec.load(tmp_path / "small", made(Table, 1), inputs=x)
    assert again.split._lengths == (("heads", 2), ("size", None))
    assert torch.equal(again(x), small(x)) and torch.equal(copy.deepcopy(small)(x), small(x))


class Settled(nn.Module):
    """Keeps its config out of reach, as diffusers does."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 5)

    @property
    def config(self):
        return types.SimpleNamespace(heads=4)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.config.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_what_counts_on_a_config_that_cannot_be_set_stays():
    x = TOKENS.double()
    gated = half(gatec.prune(made(Settled), x))
    small = gatec.compact(gated, x)
    assert distance(small(x), gated(x)) <= 1e-12 and "heads removed; " in str(gatec.report(small))


class Heads(nn.Module):
    """Returns a dict, and in it a dict."""

    def __init__(self):
        super().__init__()
        self.up, self.out, self.more = nn.Linear(16, 12), nn.Linear(12, 3), nn.Linear(12, 4)

    def forward(self, x):
        y = F.relu(self.up(x))
        return {"logits": self.out(y), "more": {"a": self.more(y)}}


def test_everything_in_a_dict_that_a_model_returns_stays():
    x = TOKENS.double()
    gated = half(gatec.prune(made(Heads), x))
    small = gatec.compact(gated, x)
    assert list(gatec.channel_gates(gated)) == ["model"] and small.up.out_features < 12
    assert distance(small(x), gated(x)) <= 1e-12


def test_a_layer_with_a_shorter_way_keeps_what_that_counts_on():
    """The encoder takes one operator for a whole layer where no gradient is wanted, and that counts on its widths."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    x = TOKENS.double()
    gated = half(gatec.prune(model, x))
    small = gatec.compact(gated, x)
    with torch.no_grad():
        assert distance(small(x), gated(x)) <= 1e-12
    assert distance(small(x), gated(x)) <= 1e-12


class Fixed(nn.Module):
    """A state of a width that only its code knows."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(16, 12), nn.Linear(12, 3)

    def forward(self, x):
        state = x.new_zeros(len(x), 12)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state)


def test_a_model_of_which_nothing_could_go_is_saved(tmp_path):
    x = TOKENS.double()
    gated = half(gatec.prune(made(Fixed), x))
    small = gatec.compact(gated, x)
    assert [p.shape for p in small.parameters()] == [p.shape for p in made(Fixed).parameters()]
    assert "inconsistent hidden_size" in str(gatec.report(small))
    gatec.save(small, tmp_path)
    assert distance(gatec.load(tmp_path, made(Fixed, 1), inputs=x)(x), gated(x)) <= 1e-12


def test_rows_without_a_direction_go():
    normed, spectral = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(normed(nn.Linear(16, 12)), nn.ReLU(), spectral(nn.Linear(12, 4))).double().eval()
    gated = half(gatec.prune(model, TOKENS.double()))
    small = gatec.compact(gated, TOKENS.double())
    assert distance(small(TOKENS.double()), gated(TOKENS.double())) <= 1e-12


@pytest.mark.parametrize("drift", [float("nan"), 0.5])
def test_a_result_that_moved_is_not_handed_over(drift, monkeypatch):
    gated = half(gatec.prune(made(Fixed), TOKENS.double()))
    monkeypatch.setattr("gatec.pruning.compacting.distance", lambda *_: drift)
    with pytest.raises(gatec.GatecError, match=r"a compacted Fixed that computes what the gated one does\n  found an"):
        gatec.compact(gated, TOKENS.double())


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda g: gatec.prune(g, TOKENS), r"a model without channel gates\n  found gates in Sequential"),
        (lambda g: gatec.prune(tower(), TOKENS, form="soft"), r"a form of channel gates\n  found 'soft'"),
        (lambda g: gatec.prune(tower(), TOKENS, only="nowhere"), r"a group of Sequential to prune"),
        (
            lambda g: gatec.prune(tower(), TOKENS, kinds=["head"]),
            r"kinds of groups\n  found 'head'\n  try   some of channels",
        ),
        (lambda g: gatec.groups(g, TOKENS)["nobody"], r"the name of a group\n  found nobody\n  try   one of "),
        (lambda g: gatec.close(g, {"nobody": [1]}), r"the name of a gated group\n  found nobody"),
        (lambda g: gatec.close(g, {next(iter(gatec.channel_gates(g))): [99]}), r"numbers of slots from 0 to"),
        (lambda g: gatec.close(g, {next(iter(gatec.channel_gates(g))): [True]}), r"a mask of \d+ slots"),
        (lambda g: gatec.close(g, to=2.0), r"a share from 0 to 1\n  found to=2.0"),
        (lambda g: gatec.close(g, to="0.5"), r"a share from 0 to 1\n  found to='0.5'"),
        (lambda g: gatec.close(g), r"slots to close, by name of group, or a budget\n  found neither"),
        (lambda g: gatec.close(g, to=0.5, multiple=0), r"a number of slots, 1 or more\n  found multiple=0"),
        (lambda g: gatec.prune(tower(), TOKENS, only="("), r"`only` as a regular expression over names of groups"),
        (lambda g: gatec.close(g, to=1e-6, by="magnitude"), r"a budget of at least"),
        (lambda g: gatec.close(g, to=0.5, by="luck"), r"a way of telling which slots matter\n  found 'luck'"),
        (lambda g: gatec.close(g, to=0.5, by="taylor"), r"gradients of gates"),
        (lambda g: gatec.budget(g, "watts"), r"a cost that is counted\n  found 'watts'"),
        (lambda g: gatec.budget(tower()), r"a model with channel gates\n  found none in Sequential"),
    ],
)
def test_bad_input_is_told_in_words(call, words):
    torch.manual_seed(0)
    gated = gatec.prune(tower(), TOKENS)
    before = {n: v.clone() for n, v in gated.state_dict().items()}
    with pytest.raises(gatec.GatecError, match=words):
        call(gated)
    assert all(torch.equal(v, before[n]) for n, v in gated.state_dict().items())


def test_one_kind_of_groups():
    model = gatec.prune(tower(), TOKENS, kinds="heads")
    found = gatec.groups(model, TOKENS)
    assert {found[name].kind for name in gatec.channel_gates(model)} == {"heads"}


def test_a_layer_of_another_size_is_told():
    gated = gatec.prune(made(network), IMAGE.double())
    gated[10] = nn.Linear(11, 4).double()
    words = (
        r"^gatec: a gated Sequential that runs\n  found RuntimeError: .*\n  try   gatec.compact\(model, inputs\) with"
    )
    with pytest.raises(gatec.GatecError, match=words):
        gatec.compact(gated, IMAGE.double())


def test_a_model_changed_by_hand_is_told():
    gated = gatec.prune(made(network), IMAGE.double())
    gated[10] = nn.Linear(10, 4).double()
    gated[0] = nn.Conv2d(3, 8, 3, padding=1).double()
    with pytest.raises(gatec.GatecError):
        gated[6] = nn.Conv2d(12, 11, 1).double()
        gated[10] = nn.Linear(11, 4).double()
        gatec.compact(gated, IMAGE.double())


# -- other people's models --------------------------------------------------------------------------------------------

FAMILIES = [
    *(f"transformers:{n}" for n in ("llama", "t5", "gpt2", "mamba", "vit", "clip")),
    "timm:mobilenetv3_small_050",
]
TEXT = "qwen3 gemma2 phi3 gpt_neox bloom falcon whisper bert modernbert wav2vec2"
MORE = [
    *(f"transformers:{n}" for n in TEXT.split()), "timm:resnet18", "timm:vit_tiny_patch16_224",
    *(f"transformers:{n}" for n in ("swin", "segformer", "convnext", "opt", "albert", "dinov2", "deberta-v2", "resnet")),
    *(f"timm:{n}" for n in ("convnext_atto", "densenet121", "regnetx_002", "efficientnet_b0", "swin_tiny_patch4_window7_224")),
]  # fmt: skip


@pytest.mark.parametrize("spec", [*FAMILIES, *map(swept, MORE)])
def test_other_peoples_models(spec):
    """Gates everywhere, half of all slots closed: what is left computes the same, and 95 % of the numbers were in reach."""
    model = load(spec).double()
    args, kwargs = doubled(one_call(model, None))
    given = kwargs or args
    assert gatec.groups(model, given).covered >= 0.95
    gated = half(gatec.prune(model, given), share=0.4)
    small = gatec.compact(gated, given)
    args, kwargs = one_call(model, given)
    with torch.no_grad(), exactly():
        found, wanted = small(*args, **kwargs), gated(*args, **kwargs)
    found, wanted = (getattr(o, "logits", getattr(o, "logits_per_image", o)) for o in (found, wanted))
    assert distance(found, wanted) <= 1e-12
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_what_is_left_generates(kind):
    model = load(f"transformers:{kind}").double()
    gated = half(gatec.prune(model), share=0.3)
    small = gatec.compact(gated)
    ids = torch.randint(5, 200, (2, 6), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(small.generate(ids, **options), gated.generate(ids, **options))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_transformers_loads_what_is_left(kind, tmp_path):
    """Equal layers, norms folded into plain ones: the config says it, and from_pretrained needs no gatec."""
    model = load(f"transformers:{kind}")
    gated = gatec.prune(model, kinds=["residual", "channels", "heads"])
    gatec.close(gated, to=0.5, by="magnitude", uniform=True, multiple=4)
    small = gatec.compact(gated)
    assert (
        small.config.hidden_size < model.config.hidden_size
        and small.config.intermediate_size < model.config.intermediate_size
    )
    small.save_pretrained(tmp_path)
    plain = type(model).from_pretrained(tmp_path).eval()
    ids = torch.randint(5, 200, (2, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(ids).logits, small(ids).logits)
    assert all("_gatec" not in name for module in plain.modules() for name in vars(module))


def test_a_config_that_cannot_say_it_is_told():
    gated = half(gatec.prune(load("transformers:bert")), share=0.3)
    small = gatec.compact(gated)
    assert "its config does not say so" in gatec.report(small).edits[-1].why
    assert small.config.to_dict() == load("transformers:bert").config.to_dict()
