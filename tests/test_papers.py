"""Laws for every block of examples/papers: files are discovered, none is named here."""

import ast
import copy
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest
import torch
from sampled import some
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import gatec
from gatec.bench.coverage.same import same
from gatec.bench.papers import FOLDER, literature, papers, summary
from gatec.bench.papers.covered import covered
from gatec.bench.papers.row import puts
from gatec.capture import Nothing, install, unit_of
from gatec.capture.structure import flatten
from gatec.capture.unit import compiled
from gatec.catalog import gates
from gatec.program import Program
from gatec.recognise import finds

ALL = papers()
SIZES = [(3, 9), (1, 6), (2, 1)]  # inputs of other sizes than those traced
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
every = pytest.mark.parametrize("paper", ALL, ids=lambda p: p.name)
sixth = pytest.mark.parametrize("paper", some(ALL, of=6), ids=lambda p: p.name)  # for what traces a file many times
first, second, third = (pytest.mark.parametrize("paper", some(ALL, at=i), ids=lambda p: p.name) for i in range(3))


@pytest.fixture(autouse=True)
def python_attention():
    """The fused inference path of nn.MultiheadAttention rounds otherwise than its Python, which graphs follow."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def run(model, args, **kwargs):
    torch.manual_seed(1)
    return model(*args, **kwargs)


def outcome(model, args):
    """What a call returns, or the class of its error."""
    try:
        with torch.no_grad():
            return run(copy.deepcopy(model), args)
    except Exception as error:
        return type(error)


def numbers(value):
    return [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point()]


def finite(value):
    return all(bool(t.isfinite().all()) for t in numbers(value))


def guarded(model):
    """A copy whose root runs a captured graph, without any edit."""
    model = copy.deepcopy(model)
    install(model).rewrites.append(Nothing())
    return model


# -- the files --------------------------------------------------------------------------------------------------------


@every
def test_a_file_is_plain_torch_and_cites_its_source(paper):
    text = paper.file.read_text()
    imported = {
        alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= {"torch", "math", "functools", "itertools", "typing"}
    about = ast.get_docstring(ast.parse(text))
    assert re.search(r"\b(19|20)\d\d\b", about), "the year of the paper"
    assert re.search(r"^ {4}\S", about, re.M), "the equation, indented"
    assert "gatec" not in text and len(text.splitlines()) <= 140


def test_most_files_are_short():
    assert statistics.median(len(p.file.read_text().splitlines()) for p in ALL) < 60


def test_no_room_knows_a_paper():
    names = {p.name for p in ALL if "_" in p.name}
    for room in ("gatec", "kernels", "passes"):
        for file in (FOLDER.parents[1] / room).rglob("*.py"):
            words = set(re.findall(r"\w+", file.read_text().lower().replace("-", "_")))
            assert not names & words, f"{file}: {names & words}"


# -- the blocks -------------------------------------------------------------------------------------------------------


@every
def test_forward_and_backward_are_finite(paper):
    for options in paper.variants:
        model = paper.module(**options).train()
        output = run(model, paper.inputs(4, 6))
        assert numbers(output) and finite(output)
        loss = sum(t.square().mean() for t in numbers(output) if t.requires_grad)
        loss.backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, f"no gradient reaches {missing}"
        assert finite([p.grad for p in model.parameters() if p.grad is not None])


@every
def test_it_is_captured_whole_and_to_the_bit(paper):
    for options in paper.variants:
        model, args = paper.module(**options).eval(), paper.inputs()
        program = Program.of(copy.deepcopy(model), args, {})
        graph = program.graph_of("")
        assert graph is not None, program.missed[""]
        with torch.no_grad():
            again = compiled(graph).run(copy.deepcopy(model), *flatten(args, {}).leaves)
            assert same(run(copy.deepcopy(model), args), again)


@every
def test_the_census_finds_what_the_file_says_and_nothing_else(paper):
    for options in paper.variants:
        found = finds(Program.of(paper.module(**options).eval(), paper.inputs(), {}).canon())
        assert Counter(f.kind for f in found) == paper.gates, "\n".join(f"{f}  {f.equation}" for f in found)


@sixth
def test_another_batch_and_length_train_and_eval_and_a_copy(paper):
    own = paper.module().eval()
    model = guarded(own)
    assert same(run(copy.deepcopy(own), paper.inputs()), run(model, paper.inputs()))
    model = copy.deepcopy(model)
    for training in (False, True):
        for sizes in [(2, 6), *SIZES]:
            wanted = outcome(own.train(training), paper.inputs(*sizes))
            assert same(wanted, outcome(model.train(training), paper.inputs(*sizes))), (training, sizes)
    assert not unit_of(model).fallbacks


@third
def test_gradients_are_those_of_the_forward(paper):
    own = paper.module().train()
    model, grads = guarded(own), []
    for m in (own, model):
        output = run(m, paper.inputs(3, 6))
        sum(t.square().mean() for t in numbers(output) if t.requires_grad).backward()
        grads.append({n: p.grad for n, p in m.named_parameters()})
    assert same(*grads)


# -- bad input --------------------------------------------------------------------------------------------------------


@second
def test_one_token_no_token_and_no_row_give_numbers_or_an_error(paper):
    own = paper.module().eval()
    model = guarded(own)
    for sizes in [(2, 1), (2, 0), (0, 6)]:
        try:
            args = paper.inputs(*sizes)
        except (RuntimeError, ValueError, IndexError):
            continue  # there is no such input
        wanted = outcome(own, args)
        assert finite(wanted), sizes
        assert same(wanted, outcome(model, args)), sizes
    assert finite(outcome(own, paper.inputs(2, 1))) and not isinstance(outcome(own, paper.inputs(1, 2)), type)


@first
def test_wrong_features_are_the_same_error(paper):
    own, args = paper.module().eval(), paper.inputs()
    model = guarded(own)
    for i, arg in enumerate(args):
        if arg.is_floating_point() and arg.dim() > 1:
            dim = 1 if arg.dim() >= 4 else -1
            cut = [*args[:i], arg.narrow(dim, 0, arg.shape[dim] - 1), *args[i + 1 :]]
            assert same(outcome(own, cut), outcome(model, cut))


@third
def test_an_input_that_may_be_missing(paper):
    own, args = paper.module().eval(), paper.inputs()
    model, arguments = guarded(own), paper.arguments
    for name in (name for name, optional in arguments.items() if optional):
        cut = [None if n == name else a for n, a in zip(arguments, args, strict=False)]
        wanted = outcome(own, cut)
        assert not isinstance(wanted, type) and finite(wanted), f"without {name}"
        assert same(wanted, outcome(model, cut)), f"without {name}"


@every
def test_one_expert(paper):
    if paper.takes("experts"):
        model = paper.module(experts=1)
        output = run(model, paper.inputs())
        assert finite(output)


@every
def test_all_gates_closed(paper):
    model = paper.module().eval()
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                norm = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm))
                parameter.fill_(1.0 if norm and name == "weight" else -30.0 if name == "bias" and not norm else 0.0)
        assert finite(run(model, paper.inputs()))


# -- passes and export ------------------------------------------------------------------------------------------------


@every
@pytest.mark.sweep
def test_neutral_passes_are_neutral(paper):
    model, args = paper.module().eval(), paper.inputs()
    for gate in (g for g in gates().values() if g.born == "neutral"):
        if can_be_put(gate.name, model, args):
            assert same(outcome(model, args), outcome(gatec.convert(model, gate.name, inputs=args), args)), gate.name


@every
@pytest.mark.sweep
def test_all_experts_of_a_split_layer_are_the_layer(paper):
    model, args = doubled(paper)
    if can_be_put("moe", model, args, experts=2, top_k=2):
        converted = gatec.convert(model, "moe", experts=2, top_k=2, inputs=args)
        for a, b in zip(numbers(outcome(model, args)), numbers(outcome(converted, args)), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def can_be_put(name, model, args, **options):
    return any(e.verdict == "put" for e in gatec.why(copy.deepcopy(model), name, inputs=args, **options))


def doubled(paper):
    return paper.module().double().eval(), tuple(t.double() if t.is_floating_point() else t for t in paper.inputs())


@every
@pytest.mark.sweep
def test_fused_regions_compute_the_same(paper):
    model, args = paper.module().eval(), paper.inputs()
    fused = gatec.fuse(model, args, everywhere=True)
    for sizes in [(2, 6), (3, 9)]:
        with torch.no_grad():
            a, b = run(copy.deepcopy(model), paper.inputs(*sizes)), run(fused, paper.inputs(*sizes))
        for x, y in zip(numbers(a), numbers(b), strict=True):
            assert torch.allclose(x, y, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.sweep
def test_gradients_through_fused_regions_are_the_same(paper):
    model, args = doubled(paper)
    fused = gatec.fuse(model, args, everywhere=True)
    for mine, theirs in zip(*(_gradients(m, args) for m in (fused, model)), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-7, atol=1e-9)


def _gradients(model, args):
    values = [v for v in numbers(run(model, args)) if v.requires_grad]
    wanted = [p for p in model.parameters() if p.requires_grad]
    if not values or not wanted:
        return []
    return torch.autograd.grad(sum(v.square().sum() for v in values), wanted, materialize_grads=True, allow_unused=True)


@every
@pytest.mark.sweep
def test_every_gate_is_in_a_generated_kernel_unless_a_layer_of_torch_holds_it(paper):
    row = covered(paper.module().eval(), paper.inputs())
    assert all("has kernels of its own" in why for why in row["in no kernel"])
    assert row["in kernels"] + len(row["in no kernel"]) <= row["gates"]


@every
@pytest.mark.sweep
def test_onnxruntime_agrees_at_another_batch_and_length(paper, tmp_path: Path):
    exported = gatec.export(paper.module(), tmp_path / "model.onnx", inputs=paper.inputs())
    assert any("batch=" in row.shape for row in exported.parity), exported


@pytest.mark.parametrize("paper", [p for p in ALL if p.skips], ids=lambda p: p.name)
@pytest.mark.sweep
def test_an_export_skips_what_the_file_says(paper, tmp_path: Path):
    exported = gatec.export(paper.module(), tmp_path / "model.onnx", inputs=paper.inputs(), skip=True)
    assert len(exported.skips) == paper.skips, exported
    assert any("batch=" in row.shape for row in exported.parity), exported


def test_a_folder_without_blocks_is_an_error(tmp_path):
    with pytest.raises(gatec.GatecError, match="no Python file in"):
        papers(tmp_path)


@pytest.mark.sweep
def test_a_row_of_the_benchmark_says_how_far_a_block_got():
    rows = literature(f"^{ALL[0].name}$")
    assert [r["captured"] for r in rows] == ["to the bit"] and rows[0]["as written"] and rows[0]["onnx"] < 1e-4
    assert set(rows[0]["inserted by"]) | set(rows[0]["takes"]) <= set(gates())
    assert summary(rows)[0] == "1 of 1 captured to the bit"
    assert rows[0]["in kernels"] == rows[0]["gates"] == sum(ALL[0].gates.values()) and rows[0]["in no kernel"] == []


@pytest.mark.sweep
def test_a_row_of_the_benchmark_counts_what_an_export_skips():
    paper = next(p for p in ALL if p.skips)
    rows = literature(f"^{paper.name}$")
    assert [r["skips"] for r in rows] == [
        paper.skips
    ] and f"{paper.skips} parts of 1 files skipped where unused" in summary(rows)


def test_what_passes_put_is_known_by_kind_and_signal():
    assert ("attention-output", "sigmoid") in puts()["attention"] and ("glu", "silu") in puts()["glu"]
