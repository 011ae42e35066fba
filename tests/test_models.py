"""Models that other people wrote, from their configs with random weights: what is put where, and that they live on."""

# ruff: noqa: E501 - one case per line

import warnings
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.inputs import example_inputs
from gatec.verify import distance, tensors
from gatec.zoo import load

ALL = "moe(experts=4,top_k=4)"


class Branches(nn.Module):
    """A user's module: a branch on a flag, keyword arguments, a skip connection."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"fc1": nn.Linear(32, 64), "fc2": nn.Linear(64, 32)})
        self.norm, self.gate = nn.LayerNorm(32), nn.Linear(32, 32)

    def forward(self, x, *, scale=1.0, gated=True, mask=None):
        y = self.inner["fc2"](F.silu(self.inner["fc1"](self.norm(x))))
        if gated:
            y = y * torch.sigmoid(self.gate(x))
        if mask is not None:
            y = y * mask.unsqueeze(-1)
        return {"out": x + scale * y, "aux": y.mean()}


def sequential():
    layers = []
    for act in (nn.GELU(), nn.ReLU(), nn.SiLU()):
        layers.append(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), act, nn.Dropout(0.1), nn.Linear(64, 32)))
    return nn.Sequential(*layers).eval()


@dataclass
class Model:
    """How often each pass is put; 0 with the words of the refusal, None where the pass has no such place."""

    spec: str
    glu: int
    prune: int
    moe: int
    refuses: str = ""
    options: dict = field(default_factory=dict)
    slow: bool = False

    def build(self):
        torch.manual_seed(0)
        return OURS[self.spec]() if self.spec in OURS else load(self.spec)


OURS = {"sequential": sequential, "branches": lambda: Branches().eval()}
GATED = "its hidden layer is gated already"
MODELS = [
    Model("transformers:llama", 0, 2, 2, GATED),
    Model("transformers:mistral", 0, 2, 2, GATED, slow=True),
    Model("transformers:qwen3", 0, 2, 2, GATED, slow=True),
    Model("transformers:gemma2", 0, 2, 2, GATED, slow=True),
    Model("transformers:phi3", 0, 2, 2, GATED),
    Model("transformers:gpt2", 2, 2, 2),
    Model("transformers:opt", 2, 2, 2, slow=True),
    Model("transformers:bert", 2, 2, 2, slow=True),
    Model("transformers:t5?feed_forward_proj=gated-gelu", 0, 4, 4, GATED),
    Model("transformers:t5?feed_forward_proj=relu", 4, 4, 4, slow=True),
    Model("transformers:whisper", 4, 4, 4, slow=True),
    Model("transformers:vit", 2, 2, 2),
    Model("transformers:dinov2?use_swiglu_ffn=True", 0, 2, 2, GATED, slow=True),
    Model("timm:vit_tiny_patch16_224?depth=2,embed_dim=48,num_heads=2,img_size=32,num_classes=10", 2, 2, 2),
    Model("timm:efficientnet_b0?num_classes=10", 0, 0, 12, slow=True),
    Model("sequential", 3, 3, 3),
    Model("branches", 1, 1, 1, options={"inputs": torch.linspace(-2, 2, 128).reshape(4, 32)}),
]
BUILT = {}


def built(model):
    if model.spec not in BUILT:
        BUILT[model.spec] = model.build()
    return BUILT[model.spec]


def named(models):
    return [pytest.param(m, id=m.spec.partition("?")[0].replace(":", "-") + ("-" + m.spec.partition("?")[2][:16] if "t5" in m.spec else ""),
                         marks=[pytest.mark.sweep] if m.slow else []) for m in models]  # fmt: skip


def run(model, given):
    """The model's answer to its own example inputs."""
    args, kwargs = example_inputs(model, given.options.get("inputs"))
    with torch.no_grad():
        return model(*args, **kwargs)


def puts(model, name):
    return [e for e in gatec.report(model).edits if e.verdict == "put" and e.gate == name]


def there_and_back(gated, model, dense):
    """A checkpoint of the user's model loads into the gated one, which reverts to the user's model."""
    mine = {n: v.clone() for n, v in gated.state_dict().items()}
    gated.load_state_dict(dense)
    assert all(torch.equal(v, mine[n]) for n, v in gated.state_dict().items())
    back = gatec.revert(gated)
    assert type(back) is type(model) and list(back.state_dict()) == list(dense)
    assert all(torch.equal(v, dense[n]) for n, v in back.state_dict().items())


@pytest.mark.parametrize("name", ["glu", "prune", "moe"])
@pytest.mark.parametrize("given", named(MODELS))
def test_put_as_often_as_it_should_be(given, name):
    model, wanted = built(given), getattr(given, name)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    answer = run(model, given)
    if not wanted:
        with pytest.raises(
            gatec.GatecError, match=given.refuses if name == "glu" and given.refuses else "^gatec: a place for "
        ):
            gatec.convert(model, ALL if name == "moe" else name, **given.options)
    else:
        gated = gatec.convert(model, ALL if name == "moe" else name, **given.options)
        edits = puts(gated, name)
        assert len(edits) == wanted, str(gatec.report(gated))
        assert all(e.drift is not None and e.drift <= (1e-12 if name == "moe" else 0) for e in edits), str(
            gatec.report(gated)
        )
        there_and_back(gated, model, before)
        assert gatec.report(gated).drift <= (1e-5 if name == "moe" else 0)
        assert distance(run(gated, given), answer) <= (1e-5 if name == "moe" else 0)
        assert type(run(gated, given)) is type(answer)
        assert isinstance(gated, type(model)) and type(gated).__name__ == type(model).__name__
        assert set(model.state_dict()) < set(gated.state_dict())
        shapes = {n: v.shape for n, v in gated.state_dict().items()}
        assert all(shapes[n] == v.shape for n, v in model.state_dict().items())
        for path, module in model.named_modules():
            assert isinstance(gated.get_submodule(path), type(module))
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(type(m).__module__ == m.__class__.__module__ and "_gatec" not in vars(m) for m in model.modules())


@pytest.mark.parametrize("given", named([m for m in MODELS if m.moe]))
def test_a_mixture_of_all_experts_is_the_dense_model_in_float64(given):
    model = given.build().double()
    options = {k: v.double() for k, v in given.options.items()}
    gated = gatec.convert(model, ALL, **options)
    assert gatec.report(gated).drift <= 1e-12


@pytest.mark.parametrize("given", named([m for m in MODELS if m.moe and m.spec in ("transformers:llama", "transformers:gpt2", "transformers:vit", "sequential")]))  # fmt: skip
def test_everything_at_once_in_training(given):
    """Several passes, a loss, a step: every new parameter gets a gradient and the loss falls."""
    model = given.build().train()
    gated = gatec.convert(model, "moe(experts=4,top_k=2)", **given.options)
    optimizer = torch.optim.SGD(gated.parameters(), lr=1e-3)
    losses = []
    args, kwargs = example_inputs(gated, given.options.get("inputs"))
    for _ in range(4):
        torch.manual_seed(1)
        optimizer.zero_grad()
        loss = sum(t.square().mean() for t in tensors(gated(*args, **kwargs)) if t.is_floating_point())
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in gatec.gate_parameters(gated))
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


CAUSAL = ["llama", "gpt2", pytest.param("gemma2", marks=pytest.mark.sweep), pytest.param("phi3", marks=pytest.mark.sweep), pytest.param("qwen3", marks=pytest.mark.sweep),
          pytest.param("mistral", marks=pytest.mark.sweep), pytest.param("opt", marks=pytest.mark.sweep)]  # fmt: skip
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def neutral(model):
    """Every neutral pass that goes there; wrap last, because it leaves no plain layers to the others."""
    names = sorted((n for n, g in gatec.gates().items() if g.neutral and n != "attention"), key=lambda n: n == "wrap")
    return gatec.convert(model, ",".join(n for n in names if any(e.verdict == "put" for e in gatec.why(model, n))))


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.sweep), 3])
@pytest.mark.parametrize("kind", CAUSAL)
def test_generates_the_same_with_a_cache(kind, batch):
    model = load(f"transformers:{kind}")
    gated = neutral(model)
    ids = torch.randint(5, 200, (batch, 5))
    wanted = model.generate(ids, **GREEDY)
    assert wanted.shape == (batch, 11)
    assert torch.equal(gated.generate(ids, **GREEDY), wanted)
    assert torch.equal(gated.generate(ids, use_cache=False, **GREEDY), wanted)


def test_generates_the_same_with_left_padding():
    model = load("transformers:llama")
    gated = neutral(model)
    ids = torch.randint(5, 200, (3, 6))
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[1, :1] = 0
    ids = ids * mask
    wanted = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(gated.generate(ids, attention_mask=mask, **GREEDY), wanted)


def test_a_mixture_generates_too():
    gated = gatec.convert(load("transformers:llama").double(), "moe(experts=4,top_k=1)")
    ids = torch.randint(5, 200, (2, 5))
    cached, plain = gated.generate(ids, **GREEDY), gated.generate(ids, use_cache=False, **GREEDY)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("text", [ALL, "prune"])
def test_encoder_decoder_generates(text):
    model = load("transformers:t5?feed_forward_proj=gated-gelu").double()
    gated = gatec.convert(model, text)
    ids = torch.randint(5, 200, (2, 5))
    options = {**GREEDY, "decoder_start_token_id": 0}
    assert torch.equal(gated.generate(ids, **options), model.generate(ids, **options))


@pytest.mark.parametrize(
    "spec, text", [("transformers:llama", "prune"), ("transformers:gpt2", "glu"), ("transformers:llama", ALL)]
)
def test_save_pretrained(tmp_path, spec, text):
    from safetensors.torch import load_file

    model = load(spec)
    gated = gatec.convert(model, text)
    gated.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) <= set(gated.state_dict()) and all(
        torch.equal(v, gated.state_dict()[n]) for n, v in saved.items()
    )
    assert {n for n, _ in gated.named_parameters()} <= set(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = type(model).from_pretrained(tmp_path)
    fresh = gatec.convert(again, text)
    fresh.load_state_dict(gated.state_dict())
    ids = torch.randint(5, 200, (2, 6))
    assert torch.equal(fresh(ids).logits, gated(ids).logits)


@pytest.mark.parametrize("text", [pytest.param("prune", marks=pytest.mark.sweep), ALL])
def test_compiles_on_top(text):
    gated = gatec.convert(load("transformers:llama"), text)
    ids = torch.randint(5, 200, (2, 6))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = torch.compile(gated, backend="aot_eager")(ids, use_cache=False).logits
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(compiled, gated(ids, use_cache=False).logits, rtol=1e-5, atol=1e-5)


def test_layers_of_one_kind_share_a_capture():
    """A deep model costs what a shallow one does, but for the births."""
    gated = gatec.convert(load("transformers:llama?num_hidden_layers=6"), "prune")
    assert [e.site for e in puts(gated, "prune")] == [f"model.layers.{i}.mlp" for i in range(6)]


def test_gradient_checkpointing():
    model = load("transformers:llama")
    gated = gatec.convert(model, "prune").train()
    model.train()
    ids = torch.randint(5, 200, (2, 6))
    for m in (model, gated):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # renamed in newer releases
            m.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        m(ids, use_cache=False).logits.square().mean().backward()
    mine = dict(gated.named_parameters())
    assert all(torch.equal(p.grad, mine[n].grad) for n, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_and_half(dtype):
    model = load("transformers:llama").to(dtype)
    gated = gatec.convert(model, "prune")
    ids = torch.randint(5, 200, (2, 6))
    assert torch.equal(gated(ids).logits, model(ids).logits)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(ids).logits
        for _ in range(2):
            assert torch.equal(gated(ids).logits, wanted)
            assert type(gated(ids).logits) is torch.Tensor


def test_branches_and_keywords_of_a_users_module():
    model = OURS["branches"]()
    x = torch.linspace(-2, 2, 128).reshape(4, 32)
    gated = gatec.convert(model, "glu,prune", inputs=x)
    for args in ({}, {"gated": False}, {"scale": 0.25}, {"mask": torch.tensor([1.0, 0.0, 1.0, 1.0])}):
        assert distance(gated(x, **args), model(x, **args)) == 0
        assert list(gated(x, **args)) == ["out", "aux"]
