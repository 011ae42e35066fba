"""Every verb of the command line on a model file, with nothing replaced: what a new user types first."""

import json

import pytest
from typer.testing import CliRunner

from gatec.cli import app

MODEL = """
import torch
from torch import nn

class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))

class Dense(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
"""
VERBS = {
    "scan m.py:MLP": "1 gates, 10 places for more",
    "why m.py:MLP glu": "left  its hidden layer is gated already",
    "why m.py:Dense glu": "put   could be put",
    "convert m.py:Dense glu,prune -o out": "2 put  model drift 0.0e+00",
    "fuse m.py:MLP": "glu_silu",
    "eject m.py:MLP -o pack": "wrote  pack",
    "export m.py:MLP m.onnx --passes moe(experts=4,top_k=2)": "routing runs sparse",
}


@pytest.mark.parametrize("line", VERBS)
def test_a_verb_does_what_it_says(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(MODEL)
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
    assert VERBS[line] in result.stdout
    if "-o out" in line:
        steps = json.loads((tmp_path / "out" / "recipe.json").read_text())["steps"]
        assert [s["pass"] for s in steps] == ["glu", "prune"]
