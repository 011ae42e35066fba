"""The command line: what it prints, where it prints it, and how it fails."""

from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

import gatec
from gatec import demo, screen, settings
from gatec.cli import app
from gatec.errors import GatecError


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@dataclass
class Stand:
    """A stand-in for what the front door returns: the command line knows these attributes only."""

    text: str = ""
    name: str = "glu"
    summary: str = "GLU swap: a second projection gates."
    born: str = "neutral"
    source: str = "import triton\n"

    def __str__(self):
        return self.text

    def json(self):
        return '{"entries": {}}'

    def html(self):
        return "<html>"


@pytest.fixture
def calls(monkeypatch):
    """The front door, replaced by functions that note what the command line asks of them."""
    noted = []

    def door(name, result):
        def note(*args, **kwargs):
            noted.append((name, args[1:], kwargs))
            return result

        monkeypatch.setattr(gatec, name, note, raising=False)

    door("gates", {"glu": Stand(), "residual": Stand(name="residual")})
    door("scan", Stand("gates   1\nplaces  2"))
    door("why", [Stand("glu  head.2  left  a reason")])
    door("convert", Stand("model"))
    door("report", Stand("glu  body.2  put  drift 0.0e+00"))
    door("measure", Stand("glu  body.2  put  0.1 ms"))
    door("fuse", Stand("model"))
    door("kernels_of", {"glu_silu": Stand()})
    door("tune", Stand("glu_silu  forward  kernel"))
    door("export", Stand("wrote x.onnx"))
    door("save", None)
    return noted


MODEL = "tiny.py:Tiny"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    text = "from torch import nn\nclass Tiny(nn.Linear):\n    def __init__(self):\n"
    text += "        super().__init__(2, 2)\ndef inputs():\n    return 'x'\n"
    (tmp_path / "tiny.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_gates_are_aligned_lines(calls):
    lines = run("gates").stdout.splitlines()
    assert lines == [
        "glu       GLU swap: a second projection gates.  born neutral",
        "residual  GLU swap: a second projection gates.  born neutral",
    ]


@pytest.mark.parametrize(
    "arguments, said, asked",
    [
        (["scan", MODEL], "gates   1\nplaces  2\n", ("scan", (), {"inputs": "x"})),
        (
            ["why", MODEL, "glu"],
            "glu  head.2  left  a reason\n",
            ("why", ("glu",), {"inputs": "x"}),
        ),
        (
            ["convert", MODEL, "moe(experts=8),fuse"],
            "glu  body.2  put  drift 0.0e+00\n",
            ("convert", ("moe(experts=8),fuse",), {"inputs": "x"}),
        ),
        (
            ["fuse", MODEL],
            "glu  body.2  put  drift 0.0e+00\nglu_silu  1 lines\n",
            ("fuse", (), {"inputs": "x"}),
        ),
        (
            ["tune", MODEL, "--budget", "5", "--device", "cpu"],
            "glu_silu  forward  kernel\n",
            ("tune", (), {"inputs": "x", "budget": 5.0, "inductor": False}),
        ),
    ],
)
def test_verbs_ask_the_front_door(calls, arguments, said, asked):
    result = run(*arguments)
    assert (result.stdout, result.stderr, result.exit_code) == (said, "", 0)
    assert asked in calls


def test_tune_writes_what_was_chosen(calls, folder):
    result = run("tune", MODEL, "--device", "cpu", "--json", "-")
    assert result.stdout == '{"entries": {}}\n'
    run("tune", MODEL, "-p", "glu", "--device", "cpu", "--json", "choices.json")
    assert (folder / "choices.json").read_text() == '{"entries": {}}\n'
    assert [name for name, *_ in calls] == ["tune", "convert", "tune"]


def test_export_converts_first_where_asked(calls):
    assert run("export", MODEL, "x.onnx", "--passes", "glu").stdout == "wrote x.onnx\n"
    assert [name for name, *_ in calls] == ["convert", "export"]


def test_fuse_writes_the_kernels(calls, folder):
    result = run("fuse", MODEL, "-o", "out")
    assert (folder / "out" / "glu_silu.py").read_text() == "import triton\n"
    assert result.stdout.splitlines()[-1] == "wrote  out  0.0 MB"


def test_convert_saves_where_asked(calls, folder):
    (folder / "out").mkdir()
    run("convert", MODEL, "glu", "-o", "out")
    assert calls[-1][0] == "save"
    assert str(calls[-1][1][0]) == "out"


def test_convert_reports_in_files_and_measures_where_asked(calls, folder):
    result = run("convert", MODEL, "glu", "--html", "report.html", "--json", "-")
    assert result.stdout == '{"entries": {}}' and (folder / "report.html").read_text() == "<html>"
    assert calls[-1][0] == "report"
    assert run("convert", MODEL, "glu", "--measure").stdout == "glu  body.2  put  0.1 ms\n"
    assert calls[-1] == ("measure", ("x",), {})


ERRORS = {
    "no such file": (
        ["scan", "nowhere.py:Tiny"],
        "gatec: a model as FILE.py:NAME\n  found 'nowhere.py', and no such file\n",
    ),
    "no onnx": (
        ["export", MODEL, "x.txt"],
        "gatec: a file to export to\n  found 'x.txt'\n  try   x.onnx\n",
    ),
}


@pytest.mark.parametrize("arguments, words", ERRORS.values(), ids=ERRORS)
def test_errors_are_four_rows_on_stderr(arguments, words):
    result = run(*arguments)
    assert (result.stdout, result.stderr, result.exit_code) == ("", words, 1)


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(settings, "DEBUG", 1)
    result = run("scan", "nowhere.py:Tiny")
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("  found 'nowhere.py', and no such file\n")
    assert result.exit_code == 1


def test_lines_are_never_wrapped_and_brackets_are_text(capsys):
    screen.say("[red]" + "x" * 300)
    assert capsys.readouterr().out == "[red]" + "x" * 300 + "\n"


def test_numbers_are_set_to_the_right():
    assert screen.aligned([["a", "1.5 ms", "x"], ["bb", "12.5 ms", ""]]) == [
        "a    1.5 ms  x",
        "bb  12.5 ms",
    ]
    assert screen.aligned([["", "moe"], ["forward", "12.5 ms"]]) == [
        "             moe",
        "forward  12.5 ms",
    ]
    assert screen.aligned([]) == []


@pytest.mark.parametrize(
    "moved, words",
    [
        (0.0, "nothing, to the last bit"),
        (3e-7, "3e-07 of its size, which is rounding"),
        (0.002, "0.2% of its size"),
        (0.31, "31% of its size: that is given up for now, and training wins it back"),
    ],
)
def test_drift_is_said_in_words(moved, words):
    assert demo.in_words(moved) == words


def test_an_error_inside_a_verb_keeps_its_rows(calls, monkeypatch):
    def fail(*_, **__):
        raise GatecError("a pass", found="'gul'", hint="glu")

    monkeypatch.setattr(gatec, "convert", fail)
    result = run("convert", MODEL, "gul")
    assert result.stderr == "gatec: a pass\n  found 'gul'\n  try   glu\n"
    assert result.exit_code == 1
