"""Laws of gatec.onnx: the file agrees at sizes never traced, is standard, and is really sparse."""

import json
import re
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.errors import GatecError
from gatec.grouped import grouped_linear
from gatec.onnx import Exported, export, parity, register_decomposition, register_translation, write
from gatec.onnx.operators import DECOMPOSITIONS, TRANSLATIONS, op
from gatec.onnx.translate import Target, check

E, K, D, M, V = 4, 2, 16, 24, 99  # experts, experts per token, width, width of one expert, words


class Moe(nn.Module):
    """Experts are strided views of a dense layer, as a split without copies makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(D, E)
        self.gate = nn.Parameter(torch.randn(E * M, D) / 4)
        self.up = nn.Parameter(torch.randn(E * M, D) / 4)
        self.down = nn.Parameter(torch.randn(D, E * M) / 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, D)
        share, chosen = self.router(tokens).softmax(-1).topk(K)
        expert, order = chosen.reshape(-1).sort(stable=True)
        ends = (expert[:, None] == torch.arange(E)).sum(0).cumsum(0)
        rows = order // K
        gate = grouped_linear(tokens[rows], self.gate.view(E, M, D), ends)
        up = grouped_linear(tokens[rows], self.up.view(E, M, D), ends)
        down = self.down.view(D, E, M).permute(1, 0, 2)
        out = grouped_linear(F.silu(gate) * up, down, ends) * share.reshape(-1)[order, None]
        return torch.zeros_like(tokens).index_add(0, rows, out).view_as(x)


def agrees(got: Exported, sizes: int = 3) -> None:
    assert len(got.parity) == sizes
    assert all(row.max_rel < 1e-5 for row in got.parity), got
    domains = {node.domain for node in onnx.load(got.path).graph.node}
    assert domains <= {""}, got
    assert not got.path.with_name(got.path.name + ".data").exists()


def test_a_mixture_of_experts_is_sparse_at_run_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    got = export(Moe(), tmp_path / "moe.onnx", torch.randn(2, 5, D))
    agrees(got)
    assert got.dynamic == {"x": ("batch", "sequence", str(D))}
    assert got.notes == ("routing runs sparse: each expert of 3 grouped products sees its tokens only",)
    assert not {"Loop", "If"} & set(got.operators)
    x = torch.randn(3, 11, D)
    rows = rows_multiplied(got.path, x, tmp_path)
    # Each chosen pair of token and expert is multiplied once by each of the three weights.
    assert sum(rows) == 3 * K * 33 and len(rows) == 3 * E
    # All tokens alike: two experts see every token, two see none and multiply nothing.
    same = rows_multiplied(got.path, torch.ones(3, 11, D), tmp_path)
    assert sorted(same) == [0] * 6 + [33] * 6


def rows_multiplied(file: Path, x: Tensor, folder: Path) -> list[int]:
    """How many rows each expert's MatMul really had, from onnxruntime's own profile."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": x.numpy()})
    events = json.loads(Path(session.end_profiling()).read_text())
    calls = [e["args"] for e in events if e["args"].get("op_name") == "MatMul"]
    shapes = [next(iter(a["input_type_shape"][0].values())) for a in calls]
    return [shape[0] for shape in shapes if len(shape) == 2]


def test_every_expert_of_one_and_no_tokens(tmp_path: Path) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, M, D))

        def forward(self, x: Tensor) -> Tensor:
            return grouped_linear(x, self.weight, torch.full((1,), x.shape[0]))

    got = export(One(), tmp_path / "one.onnx", torch.randn(5, D))
    agrees(got)
    session = onnxruntime.InferenceSession(got.path)
    assert session.run(None, {"x": torch.zeros(0, D).numpy()})[0].shape == (0, M)


def tiny(name: str) -> tuple[nn.Module, Tensor | dict[str, Tensor]]:
    import transformers as hf

    ids = torch.randint(3, V, (2, 5))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    shared = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "llama":
        config = hf.LlamaConfig(**shared, intermediate_size=48, num_key_value_heads=2)
        return hf.LlamaForCausalLM(config), {"input_ids": ids, "attention_mask": mask}
    if name == "bert":
        config = hf.BertConfig(**shared, intermediate_size=48)
        kinds = torch.zeros_like(ids)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
        return hf.BertModel(config), inputs
    if name == "gpt2":
        config = hf.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4)
        return hf.GPT2LMHeadModel(config), ids
    if name == "vit":
        shared.pop("vocab_size")
        config = hf.ViTConfig(**shared, intermediate_size=48, image_size=32, patch_size=8)
        return hf.ViTForImageClassification(config), torch.randn(1, 3, 32, 32)
    if name == "mixtral":
        config = hf.MixtralConfig(**shared, intermediate_size=48, num_key_value_heads=2, num_local_experts=E)
        model = hf.MixtralForCausalLM(config)
        model.set_experts_implementation("eager")
        return model, ids
    if name == "recurrent_gemma":
        config = hf.RecurrentGemmaConfig(
            **{**shared, "num_hidden_layers": 3}, intermediate_size=48, num_key_value_heads=1
        )
        return hf.RecurrentGemmaForCausalLM(config), ids
    config = hf.T5Config(
        vocab_size=V, d_model=32, d_ff=48, d_kv=8, num_heads=4, num_layers=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :4]}
    return hf.T5ForConditionalGeneration(config), inputs


TEXT = ("batch", "sequence")
WHOLE = {
    "llama": {"input_ids": TEXT, "attention_mask": TEXT},
    "bert": {"input_ids": TEXT, "attention_mask": TEXT, "token_type_ids": TEXT},
    "gpt2": {"input_ids": TEXT},
    "vit": {"pixel_values": ("batch", "3", "32", "32")},
    "t5": {
        "input_ids": TEXT,
        "attention_mask": TEXT,
        "decoder_input_ids": ("batch", "decoder_sequence"),
    },
    "mixtral": {"input_ids": TEXT},
    "recurrent_gemma": {"input_ids": ("batch", "5")},
}
NOTES = {
    "llama": (parity.HIDDEN,),
    "vit": ("height stays 32: the model refuses 64", "width stays 32: the model refuses 64"),
    "mixtral": (
        "experts were exported as grouped_mm: a loop over the experts that were hit does not trace",
        "routing runs sparse: each expert of 4 grouped products sees its tokens only",
    ),
    "recurrent_gemma": ("sequence stays 5: tracing ties it down",),
}
SLOW = ("mixtral", "recurrent_gemma", "t5", "gpt2", "bert", "vit")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.sweep if n in SLOW else ()) for n in WHOLE])
def test_whole_models(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = tiny(name)
    model.train()
    before = (model.config.to_dict(), {k: v.clone() for k, v in model.state_dict().items()})
    got = export(model, tmp_path / f"{name}.onnx", inputs)
    agrees(got)
    assert got.dynamic == WHOLE[name]
    assert got.notes == NOTES.get(name, ())
    if "sequence" in str(got.dynamic):
        assert "sequence=11" in got.parity[1].shape and "sequence=4" in got.parity[2].shape
    assert all(m.training for m in model.modules())
    assert model.config.to_dict() == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> dict[str, Tensor | list[Tensor] | None]:
        maps = self.conv(image).relu()
        return {"logits": self.head(maps.mean((2, 3))), "maps": [maps], "cache": None}


def test_an_image_model_that_takes_any_size(tmp_path: Path) -> None:
    got = export(Conv(), tmp_path / "conv.onnx", torch.randn(1, 3, 16, 24), shapes_checked=3)
    agrees(got, sizes=4)
    assert got.dynamic == {"image": ("batch", "3", "height", "width")}
    assert got.parity[1].shape == "batch=3 height=48 width=56"
    outputs = onnx.load(got.path).graph.output
    assert [o.name for o in outputs] == ["logits", "maps_0"]
    assert outputs[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_size_can_be_kept(tmp_path: Path) -> None:
    inputs = torch.randn(2, 3, 16, 24)
    got = export(Conv(), tmp_path / "conv.onnx", inputs, static=["height", "width"])
    assert got.dynamic == {"image": ("batch", "3", "16", "24")}
    assert got.notes == ("height stays 16, as asked", "width stays 24, as asked")


def test_big_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "INLINE", 0)
    got = export(Conv(), tmp_path / "conv.onnx", torch.randn(2, 3, 16, 16))
    names = sorted(f.name for f in tmp_path.iterdir())
    assert names == ["conv.onnx", "conv.onnx.data"]
    assert got.size == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert onnxruntime.InferenceSession(got.path).get_inputs()[0].name == "image"


def test_a_remedy_is_tried_on_a_copy(tmp_path: Path) -> None:
    class Stubborn(nn.Linear):
        """Exports only in its other form, as attention does in some models."""

        form = "fused"

        def set_attn_implementation(self, form: str) -> None:
            self.form = form

        def forward(self, x: Tensor) -> Tensor:
            if self.form == "fused" and torch.compiler.is_exporting():
                raise ValueError("Cannot view a tensor with shape [2, 3] as [6]")
            return super().forward(x)

    model = Stubborn(8, 4)
    got = export(model, tmp_path / "x.onnx", torch.randn(2, 5, 8))
    agrees(got)
    assert model.form == "fused"
    assert got.notes == ("attention was exported as its eager form: the fused one has a view that does not trace",)


def test_one_tensor_passed_twice_stays_two_inputs(tmp_path: Path) -> None:
    class Sub(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a - 2 * b

    x = torch.randn(2, 3)
    got = export(Sub(), tmp_path / "sub.onnx", (x, x))
    assert list(got.dynamic) == ["a", "b"]
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    session = onnxruntime.InferenceSession(got.path)
    out = session.run(None, {"a": a.numpy(), "b": b.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(out), a - 2 * b)


class Chunks(nn.Module):
    """Works at every length, but its trace only at multiples of four: the guard is lost in ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        short = -x.shape[1] % 4
        if short:
            x = F.pad(x, (0, 0, 0, short))
        return x.view(x.shape[0], -1, 4, x.shape[2]).cumsum(2).flatten(1, 2)


class Share(nn.Module):
    """How many tokens stay is a number that Python makes of the length; the other size is any."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.topk(max(int(x.shape[1] * 0.7), 1), dim=1).values, y.flip(1)


class Steps(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = x[:, 0]
        for t in range(x.shape[1]):
            h = (h + x[:, t]).sigmoid()
        return h, y.flip(1)


KEPT = {
    "a constant of the length": (Chunks, 1, "sequence stays 8: tracing makes a constant of what depends on it"),
    "rounded by Python": (Share, 2, "sequence stays 8: tracing makes a constant of what depends on it"),
    "a loop that is no recurrence to be rolled": (Steps, 2, "sequence stays 8: tracing ties it down"),
}


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.sweep if KEPT[c][1] == 1 else ()) for c in KEPT])
def test_only_the_size_that_a_trace_ties_down_stays(case: str, tmp_path: Path) -> None:
    kind, count, note = KEPT[case]
    got = export(kind(), tmp_path / "kept.onnx", (torch.randn(2, 8, 3), torch.randn(2, 7, 3))[:count])
    agrees(got)
    assert got.notes == (note,)
    lengths = [axes[1] for axes in got.dynamic.values()]
    assert lengths == ["8", "sequence_2"][:count]


class Leaky(nn.Module):
    """A loop over time as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.sigmoid(self.gate(x)), self.up(x)
        h, out = torch.zeros_like(b[:, 0]), []
        for t in range(x.shape[1]):
            h = a[:, t] * h + (1 - a[:, t]) * b[:, t]
            out.append(h)
        return torch.stack(out, 1)


def test_a_loop_over_time_is_rolled_so_that_its_length_is_free(tmp_path: Path) -> None:
    torch.manual_seed(0)
    got = export(Leaky(), tmp_path / "leaky.onnx", torch.randn(2, 7, D))
    assert got.dynamic == {"x": ("batch", "sequence", str(D))} and got.operators["Scan"] == 1
    assert got.notes[0].startswith("loops over time were rolled")
    agrees(got)
    kept = export(Leaky(), tmp_path / "kept.onnx", torch.randn(2, 7, D), static=["sequence"])
    assert "Scan" not in kept.operators


class Recurrent(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, last = self.layer(x)
        return torch.sigmoid(out) * out, last[0] + last[1] if isinstance(last, tuple) else last


LAYERS = {
    "LSTM": lambda: nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True),
    "GRU": lambda: nn.GRU(6, 8, num_layers=2, bias=False),
    "RNN": lambda: nn.RNN(6, 8, nonlinearity="relu", bidirectional=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_layers_are_one_operator_each_at_any_length(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Recurrent(LAYERS[name]())
    got = export(model, tmp_path / "x.onnx", torch.randn(2, 5, 6))
    agrees(got)
    assert got.notes == () and got.dynamic["x"] == ("batch", "sequence", "6")
    assert got.operators[name] == model.layer.num_layers


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.rand(3))
        self.conv = nn.Conv3d(2, 4, (1, 3, 3), stride=(1, 2, 1), padding=(0, 1, 1), groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(self.conv(x), self.rate.expand(4, 1, 3).view(4, 1, 3, 1, 1), padding=(1, 0, 0), groups=4)


class OneHead(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mask = (x @ y.transpose(1, 2)) > 0
        causal = F.scaled_dot_product_attention(x, x, x, is_causal=True)
        return causal + F.scaled_dot_product_attention(x, y, y, attn_mask=mask | ~mask.any(2, keepdim=True))


class Agreeing(nn.Module):
    """A choice between two conditions, of which onnxruntime has none."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.where(x.sum(-1, keepdim=True) > 0, x > 0, x < 0)


SHAPES = {Volume: [(2, 2, 4, 6, 5)], OneHead: [(2, 5, 8), (2, 7, 8)], Agreeing: [(3, 8)]}


@pytest.mark.parametrize("kind", SHAPES)
def test_forms_that_the_exporter_itself_gets_wrong(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    got = export(kind(), tmp_path / "x.onnx", tuple(torch.randn(*shape) for shape in SHAPES[kind]))
    agrees(got)
    assert got.notes == ()


class Chosen(nn.Module):
    """The tokens that resemble the others least, whatever their length."""

    def forward(self, x: Tensor) -> Tensor:
        n = F.normalize(x, dim=-1)
        return (n @ n.transpose(1, 2)).mean(-1).topk(3, dim=1, largest=False).indices


def test_inputs_of_other_sizes_hold_no_token_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    got = export(Chosen(), tmp_path / "x.onnx", torch.randn(2, 6, 8))
    assert got.dynamic == {"x": ("batch", "sequence", "length")} and all(row.max_abs == 0 for row in got.parity)


@torch.library.custom_op("gatec_test::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    return x / 2


@halved.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return halved(x) + 1


HALVED = torch.ops.gatec_test.halved.default


def test_operators_decompose_or_translate(tmp_path: Path) -> None:
    try:
        register_decomposition(HALVED, lambda x: x * 0.5)
        assert "Mul" in export(Halved(), tmp_path / "a.onnx", torch.randn(2, 3)).operators
        DECOMPOSITIONS.pop(HALVED)
        register_translation(HALVED, lambda x: op.Div(x, op.Constant(value_float=2.0)))
        assert "Div" in export(Halved(), tmp_path / "b.onnx", torch.randn(2, 3)).operators
    finally:
        DECOMPOSITIONS.pop(HALVED, None)
        TRANSLATIONS.pop(HALVED, None)


def test_the_report(tmp_path: Path) -> None:
    got = export(Conv(), tmp_path / "conv.onnx", torch.randn(2, 3, 16, 24), shapes_checked=1)
    text = str(got).replace(str(tmp_path), "HERE")
    text = re.sub(r"\d\.\de-\d\d", "E", re.sub(r"[\d.]+ kB", "SIZE", text))
    assert text == (
        "wrote  HERE/conv.onnx   SIZE   opset 20\n"
        "input  image[batch, 3, height, width]\n"
        "holds  Conv 1, Gemm 1, ReduceMean 1, Relu 1\n"
        "verify batch=2 height=16 width=24   drift E   (eager's own E)\n"
        "verify batch=3 height=48 width=56   drift E   (eager's own E)"
    )


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Silent(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "no tensor"


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[: int(x.sum())]


HEAD = "gatec: "
ERRORS = {
    "opset": (
        lambda p: export(Conv(), p, torch.randn(1, 3, 8, 8), opset=27),
        "an opset from 18 to 25\n  found 27\n  try   opset=20",
    ),
    "no tensor in": (
        lambda p: export(Conv(), p, {"image": 3}),
        "inputs that are tensors\n  found image: int\n"
        "  try   close over other arguments in a small module around the model",
    ),
    "too many": (
        lambda p: export(Conv(), p, (torch.randn(1, 3, 8, 8),) * 2),
        "a forward of Conv that takes 2 tensors\n  found 1 positional parameters\n"
        "  try   pass inputs as a dict of keyword arguments",
    ),
    "no tensor out": (
        lambda p: export(Silent(), p, torch.randn(2, 3)),
        "a model that returns tensors\n  where Silent",
    ),
    "static": (
        lambda p: export(Conv(), p, torch.randn(1, 3, 8, 8), static=["hight"]),
        "static to name sizes among batch, height, width\n  found hight",
    ),
    "noise": (
        lambda p: export(Noise(), p, torch.randn(2, 3)),
        "a model that answers twice the same\n"
        "  found two different outputs for one input, in eval mode\n  where Noise\n"
        "  try   draw random numbers outside of the model and pass them in",
    ),
    "drift": (
        lambda p: export(Conv(), p, torch.randn(2, 3, 16, 16), tolerance=-1.0),
        "onnxruntime and eager within -1.0e+00 of each other\n"
        "  found a relative difference of E at batch=2 height=16 width=16\n  where Conv\n"
        "  try   tolerance=..., or static=[...] if only one size goes wrong",
    ),
    "operator": (
        lambda p: export(Halved(), p, torch.randn(2, 3)),
        "an ONNX translation of every operator\n  found none for gatec_test::halved.default\n"
        "  try   gatec.onnx.register_decomposition or gatec.onnx.register_translation",
    ),
    "trace": (
        lambda p: export(Branch(), p, torch.ones(2, 3)),
        "a model that torch.export traces and torch.onnx translates\n  found ...\n  where Branch\n"
        "  try   torch.export.export on the model alone shows the whole story",
    ),
    "checker": (
        lambda p: export(Conv().bfloat16(), p, torch.randn(2, 3, 8, 8).bfloat16()),
        "a file that onnx.checker accepts\n  found ...\n  try   another opset=; a bfloat16 model as model.float()",
    ),
    "bfloat16": (
        lambda p: export(nn.SiLU().bfloat16(), p, torch.randn(2, 3, 8, 8).bfloat16()),
        "a file that onnxruntime loads\n  found ...\n  try   opset=20; a bfloat16 model as model.float()",
    ),
    "foreign": (
        lambda p: check(with_foreign_node(), Target(20)),
        "a file of standard operators at opset 20\n  found opset 18, operators of com.microsoft\n  try   opset=20",
    ),
}


def with_foreign_node() -> ir.Model:
    node = ir.Node("com.microsoft", "Gelu", [])
    graph = ir.Graph([], [], nodes=[node], opset_imports={"": 18})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_in_full_words(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    act, words = ERRORS[name]
    (tmp_path / "earlier.onnx").write_text("an earlier export")
    with pytest.raises(GatecError) as error:
        act(tmp_path / "earlier.onnx")
    said = re.sub(r"of \d\.\de[-+]\d\d at", "of E at", str(error.value))
    if "found ..." in words:
        said = re.sub(r"found .+", "found ...", said)
    assert said == HEAD + words
    # A failed export leaves what was there, and nothing else.
    assert [f.name for f in tmp_path.iterdir()] == ["earlier.onnx"]
    assert (tmp_path / "earlier.onnx").read_text() == "an earlier export"


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "onnxruntime", None)
    with pytest.raises(GatecError) as error:
        export(Conv(), tmp_path / "x.onnx", torch.randn(1, 3, 8, 8))
    assert str(error.value) == (
        "gatec: onnxruntime, to prove that the file computes what the model does\n"
        "  found no such package\n"
        "  try   pip install gatec[onnx]"
    )
