"""GATEC_DEBUG and GATEC_DUMP show the same text every time."""

import torch
from torch import nn

import gatec
from gatec import settings
from gatec.trail import text


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def test_every_pass_leaves_a_numbered_file(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "DUMP", tmp_path)
    gatec.convert(mlp(), "glu,prune", inputs=torch.zeros(2, 8))
    first, second = (f.read_text() for f in sorted(tmp_path.iterdir()))
    assert "value(x0)" in first and ">= 0.5" not in first and ">= 0.5" in second


def test_decisions_are_said_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr(settings, "DEBUG", 2)
    gatec.convert(mlp(), "prune", inputs=torch.zeros(2, 8))
    said = capsys.readouterr()
    assert said.out == "" and "put   drift 0.0e+00" in said.err and "def forward(self, x0)" in said.err


def test_two_conversions_have_one_text():
    one, two = (gatec.convert(mlp(), "glu", inputs=torch.zeros(2, 8)) for _ in range(2))
    assert text(one) == text(two) != "\n"
