"""An ejected package does what the model does, in a process that has no gatec, and its own test can fail."""

import copy
import importlib
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from devices import Device
from test_recognise import Block
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import gatec
from gatec.cli import app
from gatec.dispatch import choose
from gatec.dispatch.choose import Budget, Chooser
from gatec.dispatch.table import Table
from gatec.ejection import measured

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


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x, scale=1.0):
        return x + self.down(F.gelu(self.up(self.norm(x)))) * scale


def converted(passes, x):
    torch.manual_seed(0)
    model = gatec.convert(Mlp().eval(), passes, inputs=x)
    with torch.no_grad():
        for parameter in gatec.gate_parameters(model):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Eject into a package of its own, and import it."""
    monkeypatch.syspath_prepend(tmp_path)

    def made(model, x, name, **options):
        return importlib.import_module(gatec.eject(model, tmp_path / name, x, **options).name)

    before = set(sys.modules)
    yield made
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("passes", ["prune", "glu", "glu,residual"])
def test_what_conversion_put_into_a_model_comes_along(passes, package):
    x = torch.randn(2, 3, 8)
    model = converted(passes, x)
    pack = package(gatec.fuse(model, x, everywhere=True), x, f"pack_{passes.replace(',', '_')}")
    torch.manual_seed(0)
    plain = Mlp().eval()
    names, wanted = list(plain.state_dict()), plain(x)
    other = pack.apply(plain)
    other.load_state_dict(model.state_dict())  # strict: the same names
    assert pack.functions.KERNELS and not torch.equal(model(x), wanted)
    for training in (False, True):
        for ours, theirs in zip(step(other.train(training), x), step(model.train(training), x), strict=True):
            assert torch.equal(ours, theirs)
    again = copy.deepcopy(pickle.loads(pickle.dumps(other)))
    assert torch.equal(again(x), model(x))
    with pytest.raises(RuntimeError, match="this package has no forward of Mlp for such a call"):
        other(x, scale=torch.tensor(2.0))
    assert list(pack.remove(other).state_dict()) == names and type(other) is Mlp


def step(model, x):
    """Output, and the gradients of everything by name."""
    x = x.clone().requires_grad_()
    out = model(x)
    parameters = [p for _, p in sorted(model.named_parameters())]
    return [out, *torch.autograd.grad(out.square().sum(), [x, *parameters])]


def test_additions_do_not_stay_where_a_package_does_not_fit(package):
    x = torch.randn(2, 3, 8)
    pack, other = package(converted("glu", x), x, "pack_fits"), nn.Sequential(Mlp())
    names = list(other.state_dict())
    with pytest.raises(ValueError, match="the model is a Sequential, and not a Mlp"):
        pack.apply(other)
    assert list(other.state_dict()) == names


CONVERTED = """
import sys
class Nobody:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "gatec":
            raise ImportError("there is no gatec here")
sys.meta_path.insert(0, Nobody())
import torch, m, pack
state, x, wanted = torch.load("told.pt")
model = pack.apply(m.Model().eval())
model.load_state_dict(state)
assert torch.equal(model(x), wanted)
"""


def test_a_converted_model_runs_in_a_process_without_gatec(folder, tmp_path):
    (tmp_path / "m.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        model, x = importlib.import_module("m").Model().eval(), torch.randn(2, 3, 8)
        model = gatec.convert(model, "residual", inputs=x)
        with torch.no_grad():
            for parameter in gatec.gate_parameters(model):
                parameter.add_(0.5)
        gatec.eject(gatec.fuse(model, x, everywhere=True), tmp_path / "pack", x)
        torch.save((dict(model.state_dict()), x, model(x).detach()), tmp_path / "told.pt")
        del sys.modules["m"]
    code, text = run(tmp_path, "-c", CONVERTED)
    assert code == 0, text


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.forget, self.new = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        z, c, h, found = torch.sigmoid(self.forget(x)), self.new(x), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = (1 - z[:, t]) * h + z[:, t] * c[:, t]
            found.append(h)
        return torch.stack(found, 1)


KINDS = {
    "pointwise": (lambda x: Plain(), None),
    "rowwise": (lambda x: Block(lambda m, x: torch.softmax(m.a(x), -1) * m.b(x)), None),
    "moe": (lambda x: gatec.convert(Mlp(), "moe", inputs=x), "a Softmax"),
    "scan": (lambda x: gatec.reroll(Loop(), x), "stays with gatec"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_kernel_comes_along_or_is_refused_in_words(kind, tmp_path):
    build, why = KINDS[kind]
    x = torch.randn(2, 16, 8)
    if why is None:
        kernels = gatec.eject(build(x), tmp_path / kind, x) / "kernels"
        assert any(f"gatec/kernels/{kind}.py" in file.read_text() for file in kernels.iterdir())
        return
    with pytest.raises(gatec.GatecError) as error:
        gatec.eject(build(x), tmp_path / kind, x)
    assert why in error.value.found and not (tmp_path / kind).exists()


# -- choices ------------------------------------------------------------------------------------------------------------


class Known(Device):
    """Every other run takes half as long as the one before."""

    def sample(self, run):
        self.turn = not getattr(self, "turn", False)
        return 0.5 if self.turn else 1.0


class Right:
    def ask(self, trial):
        return ""


def test_choices_that_were_measured_travel_with_a_package(package, tmp_path, monkeypatch):
    chooser = Chooser(Known(device="D"), Table(tmp_path / "table"), Right(), Budget())
    monkeypatch.setattr(measured, "CHOOSER", chooser)
    monkeypatch.setattr(measured, "DEVICE", "CPU")
    x = torch.randn(16, 8)
    pack = package(Plain(), x, "pack_choices", tune=30.0)
    told = json.loads((tmp_path / "pack_choices" / "choices.json").read_text())
    (name,) = told["entries"]
    assert not choose.FAILED
    assert {(e["side"], e["way"], e["identity"]["driver"]) for e in told["entries"][name]} == {
        ("forward", "kernel", "1"), ("backward", "kernel", "1"),
    }  # fmt: skip
    # Without measuring, what the table knows comes along.
    assert (gatec.eject(Plain(), tmp_path / "again", x) / "choices.json").read_text() == json.dumps(
        told, indent=1, sort_keys=True
    ) + "\n"

    choices, here = pack.choices, {"device": "D", "driver": "1"}
    monkeypatch.setattr(choices, "identity", lambda device: here)
    operands = [torch.randn(16, 8), torch.randn(16, 8)]
    assert choices.chosen(name, operands) and not pack.why()
    assert not choices.chosen(name, [torch.randn(999, 8)] * 2)
    assert "it was measured for other sizes than float32[<=1024x8]" in pack.why()[f"{name} forward"]
    assert choices.chosen(name, [x.requires_grad_() for x in operands])
    here["driver"] = "2"
    choices._KNOWN.clear()
    assert not choices.chosen(name, operands)
    assert "measured for device D, driver 1, not for device D, driver 2" in pack.why()[f"{name} forward"]
    monkeypatch.setattr(choices, "unknown", "kernel")
    assert choices.chosen(name, operands)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"entries": [1]}', '{"entries": {"f": [1]}}', "\udc80"])
def test_choices_that_cannot_be_read_are_none_and_say_so(text, package, tmp_path):
    pack = package(Plain(), torch.randn(2, 8), f"pack_broken_{abs(hash(text))}")
    pack.choices.FILE.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert not pack.choices.chosen("glu_silu", [torch.randn(2, 8)] * 2)
    assert "choices.json" in pack.why()["glu_silu forward"]


def test_what_is_not_in_the_table_runs_eager_unless_asked(package):
    pack = package(Plain(), torch.randn(2, 8), "pack_unknown")
    assert not pack.choices.chosen("glu_silu", [torch.randn(2, 8)] * 2)
    assert pack.why() == {"glu_silu forward": "it was not measured: gatec eject --tune does that"}
    with pytest.raises(ValueError, match="unknown is 'eager' or 'kernel', and not 'fast'"):
        pack.apply(Plain(), unknown="fast")
    pack.apply(Plain(), unknown="kernel")
    assert pack.choices.chosen("glu_silu", [torch.randn(2, 8)] * 2)


@pytest.mark.parametrize(
    "seconds, wanted", [(5.0, "a model on a device that has kernels to choose"), (0.0, "a budget in seconds")]
)
def test_tuning_needs_a_device_and_time(seconds, wanted, tmp_path):
    with pytest.raises(gatec.GatecError, match=wanted):
        gatec.eject(Plain(), tmp_path / "pack", torch.randn(2, 8), tune=seconds)


REFUSED = {
    "a gated region in Linear": (lambda: nn.Linear(8, 8), "pack", "no gate"),
    "a folder whose name can be imported": (Plain, "not-a-name", "'not-a-name'"),
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
