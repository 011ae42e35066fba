"""An ejected package does what the model does, in a process that has no gatec, and its own test can fail."""

import json
import os
import subprocess
import sys

import pytest
import torch
from test_recognise import Block
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import gatec
from gatec.cli import app

MODEL = """
import torch
from torch import nn
from torch.nn import functional as F


class Gated(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm, self.dropout = norm, nn.Dropout(0.1)
        self.power = 1

    def forward(self, x, scale=None):
        assert x.shape[-1] == 8
        h = F.silu(self.gate(x)) * self.norm(self.up(x))
        if scale is not None:
            h = h * scale
        return x + self.dropout(self.down(h)) ** self.power


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Gated(nn.RMSNorm(16)), Gated(nn.RMSNorm(16)), Gated(nn.Identity())])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def inputs():
    return (torch.randn(2, 3, 8),)
"""

FRESH = """
import copy, json, pickle, sys

class Nobody:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "gatec":
            raise ImportError("there is no gatec here")

sys.meta_path.insert(0, Nobody())
import torch
import m, pack
from pack import forwards

torch.manual_seed(0)
plain = m.Model().eval()
names = list(plain.state_dict())
ran = []
for name, way in list(forwards.FORWARDS.items()):
    run = lambda *leaves, run=way.run, name=name: (ran.append(name), run(*leaves))[1]
    object.__setattr__(way, "run", run)
model = pack.apply(copy.deepcopy(plain))
x = torch.randn(4, 5, 8)


def same(a, b, x=x, **kwargs):
    found = []
    for net in (a, b):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(1)
        out = net(leaf, **kwargs)
        found.append([out, *torch.autograd.grad(out.square().sum(), [leaf, *net.parameters()])])
    return all(torch.equal(p, q) for p, q in zip(*found))


told = {"names": list(model.state_dict()) == names, "classes": [type(l).__name__ for l in model.layers]}
told["evaluation"] = same(model, plain), len(ran)
ran.clear()
told["training"] = same(model.train(), plain.train()), len(ran)
ran.clear()
told["another form"] = same(model.layers[0], plain.layers[0], scale=torch.tensor(2.0)), len(ran)
told["other sizes"] = same(model, plain, torch.randn(1, 8)), len(ran)
ran.clear()
again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
told["copied"] = same(again, plain), len(ran)
ran.clear()
plain.layers[1].power = model.layers[1].power = 2
told["an attribute changed"] = same(model, plain), len(ran)
plain.layers[1].power = model.layers[1].power = 1
plain.layers[0].norm.eps = model.layers[0].norm.eps = 0.5
ran.clear()
told["a setting of a norm changed"] = same(model, plain), len(ran)
plain.layers[0].norm.eps = model.layers[0].norm.eps = None
norms = plain.layers[0].norm, model.layers[0].norm
plain.layers[0].norm = model.layers[0].norm = torch.nn.LayerNorm(16)
ran.clear()
told["a child replaced"] = same(model, plain), len(ran)
plain.layers[0].norm, model.layers[0].norm = norms
try:
    pack.apply(m.Gated(torch.nn.Identity()))
except ValueError as e:
    told["another model"] = str(e)
changed = m.Model()
changed.layers[2].power = 3
try:
    pack.apply(changed)
except ValueError as e:
    told["another setting"] = str(e), type(changed.layers[0]) is m.Gated
twice = torch.autograd.grad(model.eval()(x.requires_grad_()).sum(), x, create_graph=True)[0].square().sum()
told["twice"] = bool(torch.autograd.grad(twice, x)[0].abs().sum() > 0)
compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
told["compiled"] = bool(torch.allclose(compiled(x), plain.eval()(x)))
pack.remove(model)
told["removed"] = type(model.layers[0]) is m.Gated
told["gatec"] = [n for n in sys.modules if n.split(".")[0] == "gatec"]
print(json.dumps(told))
"""


def run(folder, *command):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")}
    how = {"cwd": folder, "capture_output": True, "text": True, "timeout": 300, "env": environment}
    done = subprocess.run([sys.executable, *command], **how)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model in m.py and what the command line ejected of it in pack/."""
    folder = tmp_path_factory.mktemp("ejected")
    (folder / "m.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, ["eject", "m.py:Model", "-o", "pack"])
    assert result.exit_code == 0, result.output
    return folder


def test_a_fresh_process_without_gatec(folder):
    code, text = run(folder, "-c", FRESH)
    assert code == 0, text
    told = json.loads(text.splitlines()[-1])
    settings = told.pop("another setting")
    assert told == {
        "names": True,
        "classes": ["Gated"] * 3,
        "evaluation": [True, 3],
        "training": [True, 3],
        "another form": [True, 0],
        "other sizes": [True, 0],
        "copied": [True, 3],
        "an attribute changed": [True, 2],
        "a setting of a norm changed": [True, 2],
        "a child replaced": [True, 2],
        "another model": "Gated has no module layers.0",
        "twice": True,
        "compiled": True,
        "removed": True,
        "gatec": [],
    }
    assert settings == [
        "layers.2 is not as it was when this package was made: power is ('int', 3), and was ('int', 1)",
        True,
    ]


def test_layers_that_compute_the_same_share_kernels_and_forwards(folder):
    assert sorted(f.stem for f in (folder / "pack" / "kernels").glob("*.py")) == ["__init__", "glu_silu", "glu_silu_2"]
    text = (folder / "pack" / "forwards.py").read_text()
    assert text.count("def gated_forward") == 2  # with a norm and without; training changes neither


def test_its_own_test_passes_and_can_fail(folder):
    pytest.importorskip("triton")
    code, text = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "pack/test_ejected.py")
    assert code == 0 and "2 passed" in text, text
    kernel = folder / "pack" / "kernels" / "glu_silu_2.py"
    source = kernel.read_text()
    kernel.write_text(source.replace("tl.sigmoid(", "tl.exp("))
    code, text = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "pack/test_ejected.py")
    kernel.write_text(source)
    assert code == 1 and "1 failed, 1 passed" in text, text


def test_a_readme_says_where_it_came_from(folder):
    text = (folder / "pack" / "README.md").read_text()
    assert "Apache-2.0" in text and "- `layers.0`: Gated" in text and torch.__version__ in text


def swiglu():
    return Block(lambda m, x: m.out(F.silu(m.a(x)) * m.b(x)))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.out(F.silu(self.a(x)) * self.b(x))


def test_a_fused_model_ejects_what_was_fused(tmp_path):
    x = torch.randn(2, 8)
    fused = gatec.fuse(Plain(), x, everywhere=True)
    folder = gatec.eject(fused, tmp_path / "fused_pack", x)
    assert "silu(" in (folder / "functions.py").read_text() and type(fused) is not Plain


REFUSED = {
    "a gated region in Linear": (lambda: nn.Linear(8, 8), "pack", "no gate"),
    "a folder whose name can be imported": (Plain, "not-a-name", "'not-a-name'"),
    "a model in its own class, or fused": (
        lambda: gatec.convert(Plain(), "prune", inputs=torch.randn(2, 8)), "pack", "prune at the model"),
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_ejected_is_refused_in_words(words, tmp_path):
    build, name, found = REFUSED[words]
    with pytest.raises(gatec.GatecError) as error:
        gatec.eject(build(), tmp_path / name, torch.randn(2, 8))
    assert error.value.wanted.startswith(words) and found in error.value.found
    assert not (tmp_path / name).exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mine.txt").write_text("mine")
    with pytest.raises(gatec.GatecError, match="an empty folder, or one that an earlier eject wrote"):
        gatec.eject(Plain(), tmp_path / "pack", torch.randn(2, 8))
    assert [f.name for f in (tmp_path / "pack").iterdir()] == ["mine.txt"]
