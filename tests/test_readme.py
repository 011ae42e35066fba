"""README is run: its Python is executed, its `$ gatec` lines are typed, their output compared."""

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from gatec.cli import app

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections() -> list[tuple[str, list[tuple[str, str]]]]:
    """Per heading, its blocks (language, text); the blocks of one section share a namespace."""
    parts = re.split(r"^#+ (.*)$", README.read_text(), flags=re.MULTILINE)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [(title, BLOCK.findall(text)) for title, text in pairs if BLOCK.findall(text)]


def code(blocks: list[tuple[str, str]], language: str) -> list[str]:
    return [text for kind, text in blocks if kind == language]


def commands(text: str) -> list[tuple[str, str]]:
    """A console block as (arguments of gatec, expected output); other commands are for people."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [(line[6:], output) for line, output in pairs if line.startswith("gatec ")]


def agrees(said: str, written: str) -> bool:
    """Line by line; a line of `...` stands for any lines, `...` within a line for any text."""
    pattern = ""
    for line in written.strip().splitlines():
        text = re.escape(line.rstrip()).replace(r"\.\.\.", ".*")
        pattern += r"(?:.*\n)*" if line.strip() == "..." else text + r"[ \t]*\n"
    return re.fullmatch(pattern, said.strip() + "\n") is not None


PYTHON = [(title, code(blocks, "python")) for title, blocks in sections() if code(blocks, "python")]
CONSOLE = [
    pytest.param(arguments, output, id=f"gatec {arguments}")
    for _, blocks in sections()
    for text in code(blocks, "console")
    for arguments, output in commands(text)
]


@pytest.mark.parametrize("blocks", [b for _, b in PYTHON], ids=[title for title, _ in PYTHON])
def test_python_runs(blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # Dynamo imports the module that a function comes from
    for block in blocks:
        exec(compile(block, str(README), "exec"), vars(module))


@pytest.mark.parametrize("arguments, output", CONSOLE)
def test_console_says_what_is_written(arguments, output, monkeypatch):
    monkeypatch.chdir(README.parent)
    said = CliRunner().invoke(app, shlex.split(arguments))
    text = said.stdout + said.stderr
    assert agrees(text, output), f"gatec {arguments} says:\n{text}\n{said.exception or ''}"


@pytest.mark.parametrize(
    "said, written, same",
    [
        ("a\nb\n", "a\nb", True),
        ("a\nb\nc\n", "a\n...\nc", True),
        ("a  1.5 s\n", "a  ... s", True),
        ("a\nb\n", "a", False),
        ("a 1\n", "a 2", False),
        ("a.b\n", "axb", False),
    ],
)
def test_the_comparison_sees_a_changed_digit(said, written, same):
    assert agrees(said, written) is same
