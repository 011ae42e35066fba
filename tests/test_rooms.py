"""The house plan: each row may import from the rows above it and from nowhere else."""

import ast
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = [row.split() for row in [
    "errors settings vision clocks",
    "decompose rowform ladder",
    "reductions sweep",
    "equation kernel derive aot grouped routed recurrence linear_attention",
    "capture",
    "match inputs",
    "program layers widening",
    "gate site partition places",
    "verify tidy recognise projections",
    "rewrite",
    "dealing parallel",
    "kernels regions dispatch autograd",
    "roofline reroll storing",
    "catalog onnx report history shrink blocks embeddings trail",
    "axes",
    "pruning",
    "making",
    "keeping pieces",
    "gemms mixtures scans convolutions",
    "routers",
    "lower scanning attending attending_on_cuda grouping",
    "pipeline",
    "backend census moe compaction explain fusing rerolling ejection reverting folding gradient_routing sharing distilling",
    "tuning timing selecting",
    "gatec",
    "passes",
    "screen tiny",
    "zoo",
    "bench demo",
    "cli",
    "__main__",
]]  # fmt: skip
HEIGHT = {room: height for height, row in enumerate(ROWS) for room in row}
# A package that gatec can do without is imported where it is needed, so that `import gatec` works.
OPTIONAL = {
    "transformers",
    "timm",
    "onnxruntime",
    "liger_kernel",
    "fla",
    "scattermoe",
    "k_means_constrained",
    "matplotlib",
    "torchvision",
    "sklearn",
    "triton",
}

FILES = sorted(f for folder in ("gatec", "passes", "kernels") for f in (ROOT / folder).rglob("*.py"))


def name_of(file: Path) -> str:
    """kernels/tile.py imports as gatec.kernels.tile, gatec/onnx/__init__.py as gatec.onnx."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    parts = parts if parts[0] == "gatec" else ["gatec", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


def room(module: str) -> str:
    return [*module.split("."), "gatec"][1]


def imports(file: Path) -> list[str]:
    """Every gatec module a file imports, at any depth; `from gatec.x import y` may be gatec.x.y."""
    found = []
    known = {*MODULES, *ROOMS} - (set() if file == DOOR else FRONT)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if name in known]
            found += modules if len(modules) == len(inner) else [node.module, *modules]
    return [module for module in found if module.split(".")[0] == "gatec"]


def bound(file: Path) -> set[str]:
    """The names that a file's imports bind."""
    nodes = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in nodes for alias in node.names}


ROOMS = {f"gatec.{name}" for name in HEIGHT if name != "gatec"}
DOOR = ROOT / "gatec" / "__init__.py"
# `equation` is a module and, at the front door, the decorator in it: outside, the door's wins.
FRONT = {f"gatec.{name}" for name in bound(DOOR)}


def ids(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_every_file_stands_in_a_room(file):
    assert room(name_of(file)) in HEIGHT, f"{ids(file)} stands in no row of tests/test_rooms.py"


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_imports_point_upwards(file):
    here = room(name_of(file))
    for module in imports(file):
        there = room(module)
        if there != here:
            assert HEIGHT[there] < HEIGHT[here], f"{ids(file)} reaches down to {module}"


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_passes_know_the_front_door_only(file):
    if room(name_of(file)) == "passes":
        assert set(imports(file)) <= {"gatec"}


def test_imports_inside_a_room_run_in_one_direction():
    arrows = nx.DiGraph()
    for module, file in MODULES.items():
        for other in imports(file):
            # A folder's __init__ gathers its files; they do not import it back.
            if other in MODULES and room(other) == room(module) and other != module:
                arrows.add_edge(module, other)
    assert list(nx.simple_cycles(arrows)) == []


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_no_import_is_hidden_in_a_function(file):
    tree = ast.parse(file.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    for node in (n for function in functions for n in ast.walk(function)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            hidden = {name.split(".")[0] for name in names} - OPTIONAL
            assert not hidden, f"{ids(file)}:{node.lineno} imports {hidden} lazily"


def test_the_arrows_see_what_they_should(tmp_path):
    text = "import gatec.cli\nfrom gatec import zoo, Gate\ndef f():\n  from gatec.match import here\n"
    (tmp_path / "wrong.py").write_text(text)
    seen = imports(tmp_path / "wrong.py")
    assert seen == ["gatec.cli", "gatec", "gatec.zoo", "gatec.match"]
    assert [room(module) for module in seen] == ["cli", "gatec", "zoo", "match"]
