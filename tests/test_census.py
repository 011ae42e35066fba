"""The census as a value: what it holds is complete and in one order, scanning changes nothing, equal layers fold."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from sampled import some
from torch import nn
from typer.testing import CliRunner

import gatec
from gatec import gates
from gatec.census.fold import folded, span
from gatec.cli import app
from gatec.pipeline import prepare


class MLP(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, width), nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Peeks(nn.Module):
    """Asks for the value of a tensor, draws a random number and counts."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x * 2 if x.sum() > torch.rand(()) + 9 else x


class Model(nn.Module):
    def __init__(self, depth=12):
        super().__init__()
        self.layers = nn.ModuleList(MLP(32 if i % 4 == 3 else 16) for i in range(depth))
        self.peeks, self.norm, self.unused = Peeks(), nn.BatchNorm1d(8), nn.Sequential(MLP(), nn.ReLU())
        self.again = self.layers[0]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(self.peeks(x))


X = torch.linspace(-1, 1, 48).reshape(6, 8)


def model():
    torch.manual_seed(0)
    return Model()


@pytest.fixture(scope="module")
def census():
    return gatec.scan(model(), X)


CASES = {f"{n}-{c.name}": c for n, g in gates().items() for c in g.cases}


# -- what it holds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", some(CASES))
def test_the_census_counts_what_it_holds(name):
    case = CASES[name]
    try:
        census = gatec.scan(case.model().eval(), case.inputs)
    except gatec.GatecError as error:  # weights that are not finite, say
        assert case.refuses and case.refuses in str(error)
        return
    data = json.loads(census.json())
    total = data["totals"]
    assert total == census.totals
    assert total["gates"] == len(data["gates"]) == len(census.gates)
    assert total["put"] + total["left"] + total["near"] == len(data["places"]) == len(census.places)
    assert total["missed"] == len(data["missed"]) == len(census.missed)
    assert total["modules"] == len(list(case.model().modules()))
    assert data["gates"] == [json.loads(json.dumps(g.data())) for g in census.gates]
    assert all(why for _, why in census.missed)


def test_the_json_of_version_2_has_these_words(census):
    data = json.loads(census.json())
    assert data["schema"] == "gatec.census/2"
    assert set(data) == {
        "schema",
        "model",
        "totals",
        "kinds",
        "passes",
        "gates",
        "places",
        "missed",
        "modules",
        "regions",
    }
    assert {frozenset(e) for e in data["places"]} == {frozenset({"pass", "site", "verdict", "why"})}
    assert {frozenset(e) for e in data["missed"]} == {frozenset({"path", "why"})}
    module = {"path", "class", "where", "own", "all", "calls", "capture", "why"}
    assert {frozenset(e) for e in data["modules"]} == {frozenset(module)}
    assert set(data["passes"]) == {e["pass"] for e in data["places"]}
    assert set(data["kinds"]) == {g["kind"] for g in data["gates"]} and all(data["kinds"].values())


def test_every_module_stands_in_the_tree_with_what_became_of_it(census):
    held = {e.path: e for e in census.modules}
    assert list(held) == [n for n, _ in Model().named_modules(remove_duplicate=False) if not n.startswith("again.")]
    program = prepare(model(), X)
    for entry in census.modules:
        assert entry.calls == len(program.calls.get(entry.path, ()))
        assert (entry.why != "") == (entry.capture in ("refused", "uncalled", "shared"))
        assert entry.all == sum(p.numel() for p in program.module(entry.path).parameters())
    captures = {p: held[p].capture for p in ("", "layers", "layers.0", "layers.0.up", "peeks", "unused", "again")}
    assert captures == {"": "graph", "layers": "container", "layers.0": "graph", "layers.0.up": "layer",
                        "peeks": "refused", "unused": "uncalled", "again": "shared"}  # fmt: skip
    assert held["again"].why == "it is the same module as layers.0"
    assert held["layers.0"].calls == 1


def test_every_module_without_a_graph_is_missed_with_a_reason(census):
    assert [path for path, _ in census.missed] == ["peeks", "unused"]
    reasons = dict(census.missed)
    assert "depends on data" in reasons["peeks"] and "test_census.py:" in reasons["peeks"]
    assert reasons["unused"] == "it was not called in the recorded forward"


def test_a_class_is_found_where_it_is_written(census):
    lines = Path(__file__).read_text().splitlines()
    for entry in census.modules:
        file, _, number = entry.where.rpartition(":")
        assert file
        if file.endswith("test_census.py"):
            assert lines[int(number) - 1] == f"class {entry.name}(nn.Module):"
    assert (
        next(e for e in census.modules if e.path == "norm").where.partition(":")[0] == "torch/nn/modules/batchnorm.py"
    )


def test_a_rewritten_module_keeps_its_name():
    gated = gatec.convert(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), "glu", inputs=X)
    census = gatec.scan(gated, X)
    assert (census.model, census.modules[0].name) == ("Sequential", "Sequential")
    assert census.modules[0].where.startswith("torch/nn/modules/container.py:")


# -- laws ------------------------------------------------------------------------------------------------------------


def test_equal_models_give_equal_json(census):
    assert gatec.scan(model(), X).json() == census.json()
    assert gatec.scan(model(), X).html() == census.html()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_scanning_changes_nothing(training):
    scanned = model().train(training)
    scanned.layers[1].train(not training)
    before = {n: v.clone() for n, v in scanned.state_dict().items()}
    kinds, flags = [type(m) for m in scanned.modules()], [m.training for m in scanned.modules()]
    plain = [set(vars(m)) for m in scanned.modules()]
    random_state = torch.get_rng_state()
    census = gatec.scan(scanned, X)
    assert str(census) and census.json() and census.html()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(scanned.state_dict()) == list(before)
    assert all(torch.equal(v, before[n]) for n, v in scanned.state_dict().items())
    assert [type(m) for m in scanned.modules()] == kinds
    assert [m.training for m in scanned.modules()] == flags
    assert [set(vars(m)) for m in scanned.modules()] == plain


# -- folding -----------------------------------------------------------------------------------------------------------


def unfolded(text):
    """The paths that a folded path stands for."""
    paths = [""]
    for part in text.replace("..", "~").split("."):
        paths = [f"{path}.{n}" for path in paths for n in numbers(part)]
    return [path[1:] for path in paths]


def numbers(part):
    if not re.fullmatch(r"[\d,~:]+", part):
        return [part]
    found = []
    for first, last, step in re.findall(r"(\d+)(?:~(\d+))?(?::(\d+))?", part):
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_folding_loses_no_path_and_adds_none(seed):
    draw = random.Random(seed)
    shapes = ["layers.{}.mlp", "layers.{}.experts.{}", "{}.{}.{}", "head", "", "blocks.{}"]
    paths = {s.format(*(draw.randrange(7) for _ in range(3))) for s in draw.choices(shapes, k=draw.randrange(1, 60))}
    paths = sorted(paths)
    again = [p for text, _ in folded(paths) for p in unfolded(text)]
    assert sorted(again) == paths
    assert sum(count for _, count in folded(paths)) == len(paths)


@pytest.mark.parametrize(
    "found, text",
    [
        ([0, 1, 2, 3], "0..3"),
        ([5], "5"),
        ([0, 1], "0,1"),
        ([0, 2, 4, 6, 8], "0..8:2"),
        ([0, 1, 2, 7, 9], "0..2,7,9"),
        ([3, 7, 11], "3,7,11"),
        ([0, 2, 3, 4, 5], "0,2..5"),
        ([], ""),
    ],
)
def test_numbers_are_written_as_runs(found, text):
    assert span(found) == text


def test_equal_layers_are_one_line(census):
    lines = [" ".join(line.split()) for line in str(census).splitlines()]
    code = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "functional.silu" in text)
    total = census.totals
    assert lines[0] == f"Model: {total['gates']} gates, {total['put']} places for more, 2 not captured"
    assert f"glu silu layers.0..2,4..6,8..10 x9 6x16 {Path(__file__)}:{code}" in lines
    assert f"glu silu layers.3,7,11 x3 6x32 {Path(__file__)}:{code}" in lines
    assert "moe layers.1..11 x11 put could be put" in lines
    assert not any(line.endswith(" ") for line in str(census).splitlines())


def test_rich_prints_the_same_words_in_any_width(census):
    for width in (60, 400):
        console = Console(width=width, color_system=None)
        with console.capture() as captured:
            console.print(census)
        words = re.sub(r"\s", "", captured.get())
        assert len(words) == len(re.sub(r"\s", "", str(census)))


def test_brackets_in_names_are_text():
    class Odd(nn.ModuleDict):
        def forward(self, x):
            return self["[red]x[/]"](x)

    assert "[red]x[/]" in str(gatec.scan(Odd({"[red]x[/]": MLP()}), X))


# -- the command -------------------------------------------------------------------------------------------------------

FILE = "from torch import nn\nclass Tiny(nn.Sequential):\n    def __init__(self):\n"
FILE += "        super().__init__(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["scan", "tiny.py:Tiny", *arguments])


def test_the_command_writes_what_the_census_gives(folder):
    result = run("--html", "page.html", "--json", "census.json")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == ["wrote  page.html  0.0 MB", "wrote  census.json  0.0 MB"]
    data = json.loads((folder / "census.json").read_text())
    assert (data["schema"], data["model"]) == ("gatec.census/2", "Tiny")
    assert result.stdout.startswith(f"Tiny: {len(data['gates'])} gates, {data['totals']['put']} places for more\n")
    assert json.dumps(data["places"][0]["site"])[1:-1] in (folder / "page.html").read_text()


def test_json_on_standard_output_stands_alone():
    result = run("--json", "-")
    assert json.loads(result.stdout)["model"] == "Tiny"
    assert result.stderr == ""


ERRORS = {
    "no folder": (["--html", "no/page.html"], "  found 'no/page.html', and no such folder\n"),
    "a folder": (["--json", "."], "  found '.', which is a folder\n"),
    "refused by the system": (["--html", "/proc/page.html"], "  found '/proc/page.html': No such file or directory\n"),
}


@pytest.mark.parametrize("arguments, words", ERRORS.values(), ids=ERRORS)
def test_a_file_that_cannot_be_written_is_said(arguments, words):
    result = run(*arguments)
    assert (result.stderr, result.exit_code) == (f"gatec: a file to write to\n{words}", 1)
