"""The census page in a headless browser: what it shows is what the census holds, and nothing of a model can break it."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from browser import Browser, programs
from torch import nn

import gatec

DEPTH = 100


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Highway(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.carry = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        g = torch.sigmoid(self.gate(x))
        return g * self.carry(x) + (1 - g) * x


class Peeks(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp, self.dense = MLP(), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        return x + self.mlp(x) + self.dense(x)


class Doubled(nn.Module):
    """Two gates on one line, of one kind and shape."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        return torch.sigmoid(self.a(x)) * self.b(x) + torch.sigmoid(self.c(x)) * self.d(x)


class Turns(nn.Module):
    """Two kinds of layers in turns."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Doubled() if i % 2 else MLP() for i in range(8))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.road, self.peeks, self.unused = Highway(), Peeks(), MLP()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.peeks(self.road(x))


SCRIPT = "<script>broken=1</script>"
IMAGE = "<img src=x onerror=broken=1>"


class Evil(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict(
            {f"</script>{SCRIPT}": MLP(), IMAGE: MLP(), "<!--<script>{{data}}": Peeks(), "é\"'&amp;": MLP()}
        )

    def forward(self, x):
        for part in self.parts.values():
            x = part(x)
        return x


X = torch.linspace(-1, 1, 16).reshape(2, 8)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    torch.manual_seed(0)
    census = gatec.scan(Deep().eval(), X)
    file = tmp_path_factory.mktemp("page") / "deep model & co.html"
    file.write_text(census.html(), encoding="utf-8")
    return census, file


@pytest.fixture
def page(chromium, deep):
    chromium.open(deep[1])
    return chromium


def search(page, text):
    page.run(
        "const s = document.getElementById('search'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))", text
    )
    status = "return document.getElementById('hits').textContent"
    before = page.run("document.getElementById('hits').textContent = '...'; return 1")
    page.until(lambda: before and page.run(status) != "...")


def rows(page):
    return page.texts("#tree .name")


def facts(page):
    keys = page.texts("#panel dt")
    return dict(zip(keys, page.texts("#panel dd"), strict=True))


def test_totals_on_the_page_are_those_of_the_census(page, deep):
    census, _ = deep
    data = json.loads(census.json())
    shown = page.run(
        "return [...document.querySelectorAll('[data-total]')].map(e => [e.dataset.total, Number(e.title)])"
    )
    words = {"places for more": "put", "not captured": "missed", "bytes saved": "bytes_saved"}
    assert {words.get(k, k): n for k, n in shown} == data["totals"] == census.totals
    assert data["totals"]["gates"] == len(data["gates"]) == len(census.gates) > DEPTH
    assert data["totals"]["missed"] == len(data["missed"]) == 2


def test_the_legend_counts_everything(page, deep):
    census, _ = deep
    found = {}
    for gate in census.gates:
        found[f"gate {gate.kind}"] = found.get(f"gate {gate.kind}", 0) + 1
    for edit in census.places:
        found[f"place {edit.gate} {edit.verdict}"] = found.get(f"place {edit.gate} {edit.verdict}", 0) + 1
    found["missed"] = len(census.missed)
    shown = page.run("return [...document.querySelectorAll('#legend .chip')].map("
                     "e => [e.dataset.key, Number(e.querySelector('.count').textContent)])")  # fmt: skip
    assert dict(shown) == found


def test_equal_layers_are_one_row_and_can_be_taken_apart(page):
    assert "0..99" in rows(page) and len(rows(page)) < 30
    assert page.texts("#tree .times")[0] == "\u00d7100"
    page.click("#tree .times")
    assert [name for name in rows(page) if name.isdigit()] == [str(i) for i in range(DEPTH)]
    page.click("#tree .times")
    assert "0..99" in rows(page) and "99" not in rows(page)


def test_what_is_closed_has_no_elements(page):
    before = page.run("return document.querySelectorAll('*').length")
    assert before < 600
    page.click("#tree .times")
    assert page.run("return document.querySelectorAll('*').length") > before + DEPTH


def test_a_gate_says_everything_that_is_known_of_it(page, deep):
    census, _ = deep
    page.click("#tree .chip.gate")
    first = next(g for g in census.gates if g.site == "layers.0.mlp")
    said = page.run("return document.getElementById('panel').textContent")
    for key, value in first.data().items():
        plain = {"site": "layers.0..99.mlp", "shape": "2 \u00d7 16"}.get(key, value)
        text = f"{plain:,}" if isinstance(plain, int) and plain >= 10_000 else str(plain)
        assert text in said, (key, text)
    assert facts(page)["module"] == "layers.0..99.mlp (100 equal)"
    page.click("#panel summary")
    page.until(lambda: page.texts("#panel details pre"))
    assert page.texts("#panel details pre")[0].split() == [f"layers.{i}.mlp" for i in range(DEPTH)]


def test_a_place_says_its_verdict_and_why(page, deep):
    census, _ = deep
    page.click("#tree .chip.place.left")
    name = page.run("return document.querySelector('#panel .chip').textContent").split()[-1]
    assert facts(page)["why"] in {e.why for e in census.places if (e.gate, e.verdict) == (name, "left")}
    assert facts(page)["verdict"] == "left"
    assert page.texts("#panel .about")[0] == gatec.gates()[name].summary


def test_every_uncaptured_module_shows_its_reason(page, deep):
    census, _ = deep
    assert page.texts("#tree .reason") == [f"not captured: {why}" for _, why in census.missed]
    page.click("#tree .reason")
    assert facts(page)["why"] == dict(census.missed)["peeks"]
    assert "depends on data" in facts(page)["why"]


def test_a_module_says_where_its_class_is_written(page):
    page.click("#tree .name", rows(page).index("road"))
    assert re.fullmatch(r".*tests/test_page\.py:\d+", facts(page)["code"])
    assert (facts(page)["parameters"], facts(page)["calls"]) == ("144", "1 in the recorded forward")


@pytest.mark.parametrize(
    "text, found, hits",
    [
        ("layers.42.mlp", ["42", "mlp", "gate", "up", "down"], "4 of"),
        ("HIGHWAY", ["road"], ""),
        ("sigmoid", ["road"], ""),
        ("depends on data", ["peeks"], "1 of"),
        ("gelu", ["dense", "1"], ""),
        ("layers.7. could be put", ["7", "dense"], ""),
    ],
)
def test_search_leaves_what_it_finds(page, text, found, hits):
    search(page, text)
    assert set(found) <= set(rows(page)) and "unused" not in rows(page)
    assert page.run("return document.getElementById('hits').textContent").startswith(hits)
    search(page, "")
    assert "unused" in rows(page)


def test_search_that_finds_nothing_says_so(page):
    search(page, "nowhere to be seen")
    assert rows(page) == []
    assert page.texts("#nothing") == ["No module has “nowhere to be seen”."]


def test_the_legend_filters(page):
    page.click('#legend [data-key="gate highway"]')
    assert rows(page)[:2] == ["(model)", "road"] and "layers" not in rows(page)
    page.click('#legend [data-key="missed"]')
    assert {"road", "peeks", "unused"} <= set(rows(page)) and "layers" not in rows(page)
    page.click('#legend [data-key="gate highway"]')
    page.click('#legend [data-key="missed"]')
    assert "0..99" in rows(page)


def test_the_tree_goes_by_keys(page):
    focused = "return document.activeElement.textContent"
    page.press("/")
    assert page.run("return document.activeElement.id") == "search"
    page.press("Down", "Down", "Down")
    assert page.run(focused) == "0..99"
    page.press("Left")
    assert "mlp" not in rows(page)
    page.press("Right", "Right")
    assert page.run(focused) == "mlp"
    page.press("Enter")
    assert page.texts("#panel h2") == ["MLP"]
    page.press("Escape")
    assert page.texts("#panel h2") == [] and page.run(focused) == "mlp"
    page.press("Left", "Left")
    assert page.run(focused) == "0..99"


def test_the_page_asks_nobody_for_anything(page, deep):
    text = deep[1].read_text()
    assert not re.search(r"https?://|url\(|@import|src=|<link", text)
    assert "default-src 'none'; style-src 'sha256-" in text and "unsafe" not in text
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    assert page.complaints() == []
    assert len(text) < 2e6


CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
const rgb = (...layers) => {
  for (const color of layers) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                     return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = e => e ? [...ground(e.parentElement), getComputedStyle(e).backgroundColor] : ['white'];
return [...document.querySelectorAll('.name, .class, .chip, .reason, .size, .times, #totals div:not(.none) dt, #panel *')]
  .filter(e => e.offsetParent && e.textContent).map(e => {
    const [a, b] = [light(rgb(...ground(e), getComputedStyle(e).color)), light(rgb(...ground(e)))];
    return [e.className + ' ' + e.textContent, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(page, dark):
    page.dark(dark)
    page.click("#tree .chip.gate")
    contrasts = page.run(CONTRAST)
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    page.dark(False)
    assert (ground == "rgb(20, 23, 27)") is dark
    assert len(contrasts) > 30
    assert [(name, ratio) for name, ratio in contrasts if ratio < 4.5] == []


def test_names_of_modules_are_text(chromium, tmp_path):
    model = Evil().eval()
    model.__class__ = type("</title>" + IMAGE, (Evil,), {})
    census = gatec.scan(model, X)
    file = tmp_path / "evil.html"
    file.write_text(census.html(), encoding="utf-8")
    chromium.open(file)
    assert chromium.run("return [window.broken, document.images.length, document.scripts.length]") == [None, 0, 2]
    assert chromium.texts("h1") == ["</title>" + IMAGE]
    assert chromium.run("return document.title") == f"</title>{IMAGE}: gates"
    assert {e.path.partition(".")[2] for e in census.modules if e.path.count(".") == 1} <= set(rows(chromium))
    for number in range(len(rows(chromium))):
        chromium.click("#tree .name", number)
    assert chromium.run("return [window.broken, document.images.length, document.scripts.length]") == [None, 0, 2]
    assert chromium.complaints() == []


def test_without_a_browser_tests_are_skipped_but_not_in_ci(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    words = "needs chromium and chromedriver: apt-get install chromium chromium-driver"
    for ci, outcome in (("", pytest.skip.Exception), ("true", pytest.fail.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome, match=words):
            programs()


def test_many_chips_in_one_row_are_shown_on_demand(chromium, tmp_path):
    places = [gatec.Edit("glu", "", "left", f"reason {i}") for i in range(40)]
    file = tmp_path / "many.html"
    file.write_text(replace(gatec.scan(nn.Linear(8, 8), X), places=places).html(), encoding="utf-8")
    chromium.open(file)
    assert len(chromium.texts("#tree .chip")) == 12
    assert chromium.texts("#tree .more") == ["28 more"]
    chromium.click("#tree .more")
    assert len(chromium.texts("#tree .chip")) == 40
    assert chromium.run("return document.documentElement.scrollWidth <= window.innerWidth")


def test_layers_in_turns_fold_by_kind(chromium, tmp_path):
    census = gatec.scan(Turns().eval(), X)
    file = tmp_path / "turns.html"
    file.write_text(census.html(), encoding="utf-8")
    chromium.open(file)
    assert [name for name in rows(chromium) if name[0].isdigit()] == ["0..6:2", "1..7:2"]
    chips = chromium.texts("#tree .chip.gate")
    assert sum(int(text.rpartition("\u00d7")[2]) for text in chips) == len(census.gates) >= 8
    chromium.click("#tree .times", 1)
    assert [name for name in rows(chromium) if name[0].isdigit()] == ["0..6:2", "1..7:2", "1", "3", "5", "7"]


def test_a_narrow_window_needs_no_scrolling_sideways(page):
    size = page.ask("GET", f"{page.session}/window/rect")
    page.ask("POST", f"{page.session}/window/rect", {"width": 520, "height": 900})
    page.click("#tree .chip.gate")
    wide = page.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    page.ask("POST", f"{page.session}/window/rect", {"width": size["width"], "height": size["height"]})
    assert wide[0] <= wide[1]


def test_a_page_without_gates_says_so(chromium, tmp_path):
    file = tmp_path / "empty.html"
    census = replace(gatec.scan(nn.Linear(8, 8), X), gates=[], places=[], missed=[])
    file.write_text(census.html(), encoding="utf-8")
    chromium.open(file)
    assert rows(chromium) == ["(model)"]
    empty = ["gates", "places for more", "left", "near", "not captured", "regions", "bytes saved"]
    assert chromium.texts("#totals div.none dt") == empty
    assert chromium.complaints() == []
