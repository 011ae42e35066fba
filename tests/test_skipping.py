"""Laws of export(skip=True): the same numbers, and products that nobody needs are not computed, row by row."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gatec
from gatec.onnx.sizes import factors, quotient, reshaped
from gatec.onnx.skipping import NOTHING

D = 8


class Block(nn.Module):
    """Attention and an MLP, which mix tokens and not rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.mlp = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, D // 2)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Exits(nn.Module):
    """Each head may answer a sample; the others go on."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(D, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x, lambda i, logits: logits.softmax(-1).amax(-1) > 0.3)

    def first(self, x: Tensor, stops: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The answer of the first head that stops a sample."""
        alive, out = torch.ones(x.shape[0], dtype=torch.bool), x.new_zeros(x.shape[0], 5)
        for i, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            x = block(x)
            logits = head(x.mean(1))
            stop = alive & stops(i, logits) if i < 2 else alive
            out = torch.where(stop[:, None], logits, out)
            alive = alive & ~stop
        return out


class Sure(Exits):
    """The same, where the call says which heads are sure of which sample."""

    def forward(self, x: Tensor, sure: Tensor) -> Tensor:
        return self.first(x, lambda i, logits: sure[:, i] > 0)


class Depth(nn.Module):
    """A router says before the stack how deep a sample goes; answers are weighted with a one-hot choice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.route = nn.ModuleList(Block() for _ in range(3)), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = F.one_hot(self.route(x.mean(1)).argmax(-1), 3).to(x.dtype)
        states = []
        for block in self.blocks:
            states.append(x := block(x))
        return torch.einsum("be,betd->btd", weight, torch.stack(states, 1))


class Tokens(nn.Module):
    """Only some tokens go through the MLP; a position is added to each."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.place = nn.Linear(D, 1), nn.Parameter(torch.randn(1, 64, D))
        self.mlp = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))

    def forward(self, x: Tensor) -> Tensor:
        keep = (self.score(x) > 0).to(x.dtype)
        return x + keep * self.mlp(x + self.place[:, : x.shape[1]])


class Experts(nn.Module):
    """Two of four convolutions for each image; `form` is how the choice is written."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.router = form, nn.Linear(3, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, D, 3, padding=1), nn.BatchNorm2d(D), nn.ReLU(), nn.Conv2d(D, 3, 1))
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x.mean((2, 3)))
        every = [expert(x) for expert in self.experts]
        if self.form == "weights":
            share, chosen = logits.softmax(-1).topk(2)
            weight = torch.zeros_like(logits).scatter(1, chosen, share)
            return x + sum(weight[:, i, None, None, None] * y for i, y in enumerate(every))
        if self.form == "softmax":
            weight = logits.masked_fill(logits < logits.topk(2).values[:, -1:], -torch.inf).softmax(-1)
            return x + (weight[:, :, None, None, None] * torch.stack(every, 1)).sum(1)
        index = logits.argmax(-1)[:, None, None, None, None].expand(-1, 1, *x.shape[1:])
        return x + torch.stack(every, 1).gather(1, index)[:, 0]


class Learners(nn.Module):
    """The first so many of three learners for each token: a choice of how many, added up from its end."""

    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Linear(D, 4)
        self.learners = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen = nn.functional.one_hot(self.count(x).argmax(-1), 4).to(x.dtype)
        runs = chosen.flip(-1).cumsum(-1).flip(-1)[..., 1:].split(1, dim=-1)
        return x + sum(run * learner(x) for run, learner in zip(runs, self.learners, strict=True))


class Cache(nn.Module):
    """The last result is used again while the input changes little; state comes in and goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(D, D), nn.Sequential(Block(), Block())

    def forward(self, x: Tensor, seen: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        h = self.first(x)
        same = ((h - seen).square().mean((1, 2)) < 1.2 * h.square().mean((1, 2)))[:, None, None]
        return torch.where(same, kept, self.rest(h)), torch.where(same, seen, h)


class Batchwise(nn.Module):
    """What is left out mixes the rows: it runs for all or for none."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.layer = nn.Linear(D, 1), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return torch.where(self.score(x) > 0, y - y.mean(0), x)


def tokens(batch: int = 4) -> Tensor:
    return torch.randn(batch, 6, D)


def images() -> Tensor:
    return torch.randn(4, 3, 6, 6)


CASES = {
    "exits": (Exits, tokens, 2, "rows of"),
    "depth": (Depth, tokens, 2, "rows of"),
    "tokens": (Tokens, tokens, 1, "rows of"),
    "weights": (lambda: Experts("weights"), images, 4, "rows of"),
    "softmax": (lambda: Experts("softmax"), images, 4, "rows of"),
    "index": (lambda: Experts("index"), images, 4, "rows of"),
    "learners": (Learners, tokens, 3, "rows of"),
    "cache": (Cache, lambda: (tokens(), tokens(), tokens()), 1, "rows of"),
    "batchwise": (Batchwise, lambda: torch.randn(4, D), 1, "whole"),
}


SWEPT = ("depth", "softmax", "index", "learners")  # other spellings of what stays


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.sweep if n in SWEPT else ()) for n in CASES])
def test_what_is_skipped_and_that_nothing_changes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, inputs, count, kind = CASES[name]
    got = gatec.export(make(), tmp_path / "x.onnx", inputs(), skip=True)
    assert len(got.skips) == count, got
    assert all(line.startswith(kind) for line in got.skips), got
    assert len(got.parity) >= 3 and all(row.max_rel < 1e-5 for row in got.parity), got
    assert got.operators["If"] == count
    assert sum("proven with" in line and "some" in line for line in got.skips) >= count / 2, got
    assert "If" not in gatec.export(make(), tmp_path / "dense.onnx", inputs()).operators


def products(file: Path, folder: Path, *inputs: Tensor) -> tuple[list[Tensor], Counter[int]]:
    """The outputs, and of the products that ran how many had so many rows, from onnxruntime's own profile."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.log_severity_level = True, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    out = session.run(None, {v.name: x.numpy() for v, x in zip(session.get_inputs(), inputs, strict=True)})
    events = json.loads(Path(session.end_profiling()).read_text())
    calls = [e["args"] for e in events if e["args"].get("op_name") in ("MatMul", "Gemm", "Conv")]
    shapes = [next(iter(call["input_type_shape"][0].values())) for call in calls]
    return [torch.from_numpy(x) for x in out], Counter(shape[1 if shape[0] == 1 else 0] for shape in shapes)


def test_only_the_chosen_tokens_are_multiplied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tokens().eval()
    gatec.export(model, tmp_path / "x.onnx", tokens(), skip=True)
    for wanted in (0, 1, 7, 12):
        x = torch.randn(2, 6, D)
        with torch.no_grad():
            # Tokens are moved along the direction of the score until as many as wanted are above zero.
            score = model.score(x).flatten().sort(descending=True).values
            shift = score[wanted - 1] - 1e-4 if wanted else score[0] + 1e-4
            direction = model.score.weight / model.score.weight.square().sum()
            x = x - shift * direction
            (out,), rows = products(tmp_path / "x.onnx", tmp_path, x)
            torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-5)
        # The score of all tokens, and both layers of the MLP with as many as were chosen.
        assert rows == Counter({2: 1, wanted: 2} if wanted not in (0, 2) else {2: 1}), (wanted, rows)


def test_an_early_exit_of_all_leaves_the_blocks_behind_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, ran = Sure().eval(), tokens(), []
    gatec.export(model, tmp_path / "x.onnx", (x, torch.randn(4, 3)), skip=True)
    for head in range(3):
        sure = torch.tensor([9.0 if i >= head else -9.0 for i in range(3)]).expand(4, 3)
        (out,), rows = products(tmp_path / "x.onnx", tmp_path, x, sure)
        with torch.no_grad():
            torch.testing.assert_close(out, model(x, sure), rtol=1e-4, atol=1e-5)
        ran.append(rows.total())
    # Four layers and two products of attention for each block that runs, and the one head that answers.
    assert ran == [7, 13, 19]


def test_experts_see_their_own_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Experts("weights").eval()
    gatec.export(model, tmp_path / "x.onnx", images(), skip=True)
    x = images() * 9
    chosen = model.router(x.mean((2, 3))).topk(2).indices.flatten().bincount(minlength=4)
    _, rows = products(tmp_path / "x.onnx", tmp_path, x)
    # The router, and two convolutions of each expert that any image chose.
    assert rows.total() == 1 + 2 * int((chosen > 0).sum())


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x.exp() - 1) @ x.transpose(1, 2)


class Attention(nn.Module):
    """A mask over keys is no reason to leave out a product."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        return scores.masked_fill(mask[:, None, :] < 0, -torch.inf).softmax(-1) @ x


@pytest.mark.parametrize("model, inputs", [(Plain(), tokens()), (Attention(), (tokens(), torch.rand(4, 6)))])
def test_what_decides_about_no_rows_stays_as_it_is(model: nn.Module, inputs: Tensor, tmp_path: Path) -> None:
    got = gatec.export(model, tmp_path / "x.onnx", inputs, skip=True)
    assert got.skips == () and got.notes[-1] == NOTHING and "If" not in got.operators


def test_a_branch_whose_result_is_also_read_elsewhere_always_runs(tmp_path: Path) -> None:
    class Read(Tokens):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.mlp(x)
            return torch.where(self.score(x) > 0, y, x), y.mean()

    got = gatec.export(Read(), tmp_path / "x.onnx", tokens(), skip=True)
    assert got.skips == () and got.notes[-1] == NOTHING


def test_sizes_are_products() -> None:
    assert quotient(["batch", 6], ["2*batch"]) == [3]
    assert quotient(["batch*sequence", 4], ["sequence"]) == [4, "batch"]
    assert quotient(["batch"], ["sequence"]) is None
    assert reshaped(["batch", "sequence", 6], [-1, 3]) == ("2*batch*sequence", 3)
    assert reshaped([6, 4], [-1, 3]) == (8, 3)
    assert factors([2, "(n + 1)*2"]) == Counter({4: 1, "n + 1": 1})


def test_sides_that_no_input_takes_are_said(tmp_path: Path) -> None:
    class Never(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[..., :1].square() < 0, self.mlp(x), x)

    got = gatec.export(Never(), tmp_path / "x.onnx", tokens(), skip=True)
    assert [line.partition("; ")[2] for line in got.skips] == ["proven with no of them"]
