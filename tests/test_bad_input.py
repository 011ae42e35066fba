"""Bad input: a clear error or a refusal in the report, in full words; the user's model unchanged to the bit."""

# ruff: noqa: E501 - one case per line

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.verify import distance
from gatec.zoo import load


def mlp(width=16):
    return nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 8))


class Norm(nn.Module):
    def forward(self, x):
        return x / x.norm()


class SharedUp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x):
        return self.one(F.gelu(self.up(x))) + self.two(F.gelu(self.up(x + 1)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        for _ in range(3):
            x = x + self.down(F.gelu(self.up(x)))
        return x


class Overwritten(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        x = x + 1
        hidden = self.up(x)
        x.zero_()
        return self.down(F.gelu(hidden)) + x


class Assigns(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.seen = nn.Linear(8, 16), nn.Linear(16, 8), []

    def forward(self, x):
        self.seen.append(self.down(F.gelu(self.up(x))))
        return self.seen[-1]


class TiedToEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.act, self.head = nn.Embedding(16, 8), nn.GELU(), nn.Linear(8, 16, bias=False)
        self.up = nn.Linear(8, 16, bias=False)
        self.down = nn.Linear(16, 8, bias=False)
        self.up.weight = self.embed.weight

    def forward(self, ids):
        return self.down(self.act(self.up(self.embed(ids))))


def nan():
    model = mlp()
    model[2].bias.data[3] = float("nan")
    return model


def infinite():
    model = mlp()
    model[0].weight.data[0, 0] = float("inf")
    return model


def parametrised():
    model = mlp()
    nn.utils.parametrizations.spectral_norm(model[2])
    return model.eval()


def twice_tied():
    model = nn.Sequential(mlp(), mlp())
    model[1][0].weight = model[0][0].weight
    return model


def one_module_twice():
    block = mlp()
    return nn.Sequential(block, Norm(), block)


def subclassed_tensor():
    model = mlp()

    class Mine(nn.Parameter):
        pass

    model[0].weight = Mine(model[0].weight.detach())
    return model


def replaced():
    model = mlp()
    model.forward = lambda x: nn.Sequential.forward(model, x)
    return model


X = torch.linspace(-2, 2, 32).reshape(4, 8)
MOE = {"experts": 4, "top_k": 4}
# model, inputs, passes, options, the words of the error
BAD = {
    "unknown pass": (mlp, X, "gluten", {}, r"^gatec: a pass named 'gluten'\n  found passes: adaptive_width, attention, conv_experts, glu, lora_experts, moe, prune\b.*\n  try   gatec gates lists them$"),
    "no pass": (mlp, X, "", {}, "^gatec: at least one pass\n  found none\n  try   one of adaptive_width, attention, conv_experts, glu, lora_experts, moe, prune"),
    "a pass that is a number": (mlp, X, 3, {}, "^gatec: a pass as text or as a Gate\n  found 3\n"),
    "unknown option": (mlp, X, "moe", {"expert": 4}, "^gatec: options that the pass moe knows\n  found expert\n  try   its options: .*experts=8, top_k=2"),
    "options of whom": (mlp, X, "glu,moe", {"experts": 4}, "^gatec: options inside the text where there are several passes\n  found experts\n"),
    "option without value": (mlp, X, "moe(4)", {}, r"^gatec: options as name=value\n  found 4\n  where moe\(4\)\n"),
    "open bracket": (mlp, X, "moe(experts=4", {}, r"^gatec: a pass as NAME or NAME\(option=value,...\)\n  found moe\(experts=4\n"),
    "no model": (lambda: "llama", X, "glu", {}, "^gatec: a torch.nn.Module\n  found str\n  try   gatec.zoo.load builds models from text$"),
    "a class": (lambda: nn.Linear, X, "glu", {}, "^gatec: a torch.nn.Module\n  found type\n"),
    "no place": (lambda: nn.Sequential(nn.Linear(8, 8), Norm()), X, "glu", {}, '(?s)^gatec: a place for glu in Sequential\n  found .*\n  try   gatec.why\\(model, "glu"\\) lists every place that was considered$'),
    "nothing inside": (nn.Identity, X, "prune", {}, "^gatec: a place for prune in Identity\n  found no such place\n"),
    "experts do not divide": (mlp, X, "moe", {"experts": 5}, r"\(model\)|2: 5 experts do not divide its 16 hidden units; these do: 2, 4, 8, 16\n"),
    "prime width": (lambda: mlp(17), X, "moe", MOE, "4 experts do not divide its 17 hidden units; these do: 17\n"),
    "too many chosen": (mlp, X, "moe", {"experts": 4, "top_k": 5}, "^gatec: 1 <= top_k <= experts - shared\n  found experts=4, top_k=5, shared=0\n"),
    "no experts": (mlp, X, "moe", {"experts": 0, "top_k": 0}, "^gatec: 1 <= top_k <= experts - shared\n  found experts=0, top_k=0, shared=0\n"),
    "text for a number": (mlp, X, "moe(experts=many)", {}, "^gatec: 1 <= top_k <= experts - shared\n  found experts=many, top_k=2, shared=0\n"),
    "NaN": (nan, X, "prune", {}, "^gatec: finite weights\n  found NaN or infinity in 2.bias\n  where Sequential\n  try   load the checkpoint before converting$"),
    "infinity": (infinite, X, "glu", {}, "^gatec: finite weights\n  found NaN or infinity in 0.weight\n"),
    "parametrised": (parametrised, X, "moe", MOE, r"2: 2.weight is computed \(a parametrization\), its values cannot be moved\n"),
    "tied to an embedding": (TiedToEmbedding, torch.arange(6), "moe", MOE, "up.weight is shared with embed.weight\n"),
    "tied layers": (twice_tied, X, "moe", MOE, "0.0.weight is shared with 1.0.weight; .*1.0.weight is shared with 0.0.weight\n"),
    "a parameter of another class": (subclassed_tensor, X, "moe", MOE, "0.weight is a Mine, not a plain parameter\n"),
    "one layer for two": (SharedUp, X, "moe", MOE, r"\(model\): up is called 2 times in one forward"),
    "a layer in a loop": (Recurrent, X, "prune", {}, r"\(model\): up is called 3 times in one forward\n"),
    "input overwritten": (Overwritten, X, "glu", {}, r"\(model\): x is written in place \(zero_\) before the gate could read it"),
    "assigns": (Assigns, X, "glu", {}, r"\(model\): its forward changes what stands in self\.seen\n"),
    "forward replaced": (replaced, X, "glu", {}, "its forward was replaced on the object itself"),
    "inputs of another width": (mlp, torch.randn(4, 9), "glu", {}, r"^gatec: example inputs that Sequential takes\n  found RuntimeError: .*4x9"),
    "inputs of another type": (mlp, torch.arange(8), "glu", {}, "^gatec: example inputs that Sequential takes\n  found RuntimeError: "),
    "too many inputs": (mlp, (X, X), "glu", {}, "^gatec: example inputs that Sequential takes\n  found TypeError: "),
    "unknown keyword": (mlp, {"y": X}, "glu", {}, "^gatec: example inputs that Sequential takes\n  found TypeError: "),
    "inputs that are text": (mlp, "words", "glu", {}, "^gatec: example inputs as tensors\n  found 'words', a value of type str\n"),
    "no inputs known": (Norm, None, "glu", {}, "^gatec: example inputs for Norm\n  found a model that does not say what it eats"),
    "only nonsense": (mlp, X, "glu", {"only": "("}, r"^gatec: `only` as a regular expression over site names\n  found '\(': missing "),
    "only nowhere": (mlp, X, "glu", {"only": "^encoder"}, "^gatec: a place for glu in Sequential\n  found no such place\n"),
}  # fmt: skip
ROWS = pytest.mark.parametrize("name", BAD, ids=[n.replace(" ", "-") for n in BAD])


def state(model):
    if not isinstance(model, nn.Module):
        return model
    values = {n: (v.data_ptr(), v.clone()) for n, v in model.state_dict(keep_vars=True).items()}
    return values, [
        (n, type(m), m.training, {k: id(v) for k, v in vars(m).items() if k[0] != "_"})
        for n, m in model.named_modules()
    ]


def same(a, b):
    if not isinstance(a, tuple):
        return a is b
    (one, others), (two, more) = a, b
    bits = all(one[n][0] == two[n][0] and torch.equal(one[n][1].nan_to_num(7), two[n][1].nan_to_num(7)) for n in one)
    return list(one) == list(two) and bits and others == more


@pytest.mark.parametrize("how", [gatec.convert, gatec.convert_], ids=["convert", "convert_"])
@ROWS
def test_an_error_in_words_and_the_model_as_it_was(name, how):
    build, inputs, passes, options, words = BAD[name]
    model = build()
    before = state(model)
    with pytest.raises(gatec.GatecError, match=words):
        how(model, passes, inputs=inputs, **options)
    assert same(state(model), before)
    assert not isinstance(model, nn.Module) or not [k for k in vars(model) if k.startswith("_gatec")]


@ROWS
def test_messages_name_things_and_no_addresses(name):
    build, inputs, passes, options, _ = BAD[name]
    with pytest.raises(gatec.GatecError) as caught:
        gatec.convert(build(), passes, inputs=inputs, **options)
    rows = str(caught.value).splitlines()
    assert rows[0].startswith("gatec: ") and len(rows) <= 4
    assert not any(word in str(caught.value) for word in ("0x", "{", "<function", "object at"))


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_on_a_machine_without_it(device):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(
        gatec.GatecError, match=f"^gatec: a model on {device}\n  found PyTorch .*, which sees no CUDA device here\n"
    ):
        load("transformers:llama", device)


@pytest.mark.parametrize("text", ["x = 1", "model = 3", "raise ValueError('no')", "def model(:", "model = print"],
                         ids=["no name", "a number", "raises", "no python", "returns nothing"])  # fmt: skip
def test_a_file_that_is_no_model(tmp_path, text):
    file = tmp_path / "some.py"
    file.write_text(text)
    with pytest.raises(gatec.GatecError, match=r"^gatec: .*\n  found .*"):
        load(f"{file}:model")


def test_an_already_converted_model_says_so():
    for name, options in {"glu": {}, "prune": {}, "moe": MOE}.items():
        once = gatec.convert(mlp(), name, inputs=X, **options)
        before = state(once)
        with pytest.raises(gatec.GatecError, match=f"2: {name} was put here already\n"):
            gatec.convert_(once, name, inputs=X, **options)
        assert same(state(once), before)


def test_train_mode_is_kept_and_random_state_too():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 8), nn.BatchNorm1d(8)).train()
    before, random = state(model), torch.get_rng_state()
    for name, options in {"glu": {}, "prune": {}, "moe": MOE}.items():
        gated = gatec.convert(model, name, inputs=X, **options)
        assert all(m.training for m in gated.modules() if hasattr(m, "training"))
        assert gated[4].num_batches_tracked == 0
        assert same(state(model), before) and torch.equal(torch.get_rng_state(), random)
        mine = gated.eval()(X)
        assert distance(mine, copy.deepcopy(model).eval()(X)) < 1e-6


def test_mixed_flags_are_kept():
    model = nn.Sequential(mlp(), nn.Dropout(0.5), mlp())
    model[0].eval()
    gated = gatec.convert(model, "glu", inputs=X)
    assert [m.training for m in gated] == [False, True, True]


def test_frozen_parameters_stay_frozen():
    model = mlp()
    model[0].weight.requires_grad_(False)
    for name, options in {"glu": {}, "prune": {}, "moe": MOE}.items():
        gated = gatec.convert(model, name, inputs=X, **options)
        assert not gated[0].weight.requires_grad and gated[2].weight.requires_grad
        gated(X).sum().backward()
        assert gated[0].weight.grad is None and gated[2].weight.grad is not None


# -- rolled back whole --------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def gate(after=None, birth=None, check=None, **more):
    def plain(site, here, up):
        return here * site.add("scale", lambda: nn.Parameter(torch.ones(())), near=up)

    def hidden(x: torch.Tensor, up: gatec.Linear, act: gatec.Activation, down: gatec.Linear):
        return down(gatec.here(act(up(x))))

    return gatec.Gate(before=(hidden,), after=after or plain, birth=birth, check=check, **more)


def second(what):
    """Fail at the second site."""
    seen = []

    def count():
        seen.append(1)
        if len(seen) == 2:
            what()

    return count


def stop():
    raise Stop("in the middle")


@pytest.fixture
def two():
    model = nn.Sequential(mlp(), mlp())
    kept = state(model), model(X)
    yield model
    assert same(state(model), kept[0])
    assert torch.equal(model(X), kept[1])
    assert not [k for m in model.modules() for k in vars(m) if k.startswith("_gatec")]
    assert type(model[0]) is nn.Sequential


def test_an_exception_in_after_at_the_second_site(two):
    fail = second(stop)

    def after(site, here, up):
        fail()
        return here * site.add("scale", lambda: nn.Parameter(torch.ones(())), near=up)

    with pytest.raises(Stop, match="in the middle"):
        gatec.convert_(two, gate(after), inputs=X)


def test_an_exception_after_something_was_added(two):
    fail = second(stop)

    def after(site, here, up):
        scale = site.add("scale", lambda: nn.Linear(16, 16), near=up)
        fail()
        return here * scale(here)

    with pytest.raises(Stop):
        gatec.convert_(two, gate(after, born="drifts: scaled at random"), inputs=X)


def test_an_exception_in_birth(two):
    fail = second(stop)

    def birth(site, up):
        with torch.no_grad():
            kept, weight = up.weight.clone(), up.weight.data
            site.undo.append(lambda: weight.copy_(kept))
            up.weight.zero_()
        fail()

    with pytest.raises(Stop):
        gatec.convert_(two, gate(birth=birth, born="drifts: everything is zero"), inputs=X)


def test_an_exception_in_check(two):
    fail = second(stop)

    def check(site):
        fail()

    with pytest.raises(Stop):
        gatec.convert_(two, gate(check=check), inputs=X)


def test_ctrl_c(two):
    def interrupt():
        raise KeyboardInterrupt

    fail = second(interrupt)
    with pytest.raises(KeyboardInterrupt):
        gatec.convert_(two, "moe", inputs=X, progress=lambda _: fail(), **MOE)


def test_moved_weights_are_put_back_when_a_later_pass_fails(two):
    def any_part(x: torch.Tensor, part: nn.Sequential):
        return part(x)

    def after(site, x, part):
        stop()

    with pytest.raises(Stop):
        gatec.convert_(two, ["moe(experts=4,top_k=4)", gatec.Gate(before=(any_part,), after=after)], inputs=X)


def test_moved_weights_are_put_back_at_a_refusal_in_the_middle(two):
    with pytest.raises(gatec.GatecError, match="a pass named 'nothing'"):
        gatec.convert_(two, "moe(experts=4,top_k=4),nothing", inputs=X)
    with pytest.raises(gatec.GatecError, match="options that the pass glu knows"):
        gatec.convert_(two, "moe(experts=4,top_k=4),glu(best=1)", inputs=X)


def test_a_gate_that_is_not_born_neutral(two):
    def after(site, here, up):
        return here * site.add("scale", lambda: nn.Parameter(torch.full((), 1.5)), near=up)

    words = (
        r"^gatec: the gate test_bad_input to be born neutral\n  found the output moved by \d\.\de[+-]\d\d\n"
        r"  where 0.2\n  try   start its new parameters where the equation is the identity$"
    )
    with pytest.raises(gatec.GatecError, match=words.replace("test_bad_input", r"\w*test_bad_input")):
        gatec.convert_(two, gate(after), inputs=X)


def test_a_gate_that_makes_nan_is_not_neutral(two):
    def after(site, here, up):
        return here * site.add("scale", lambda: nn.Parameter(torch.full((), float("nan"))), near=up)

    with pytest.raises(gatec.GatecError, match="to be born neutral\n  found the output moved by inf"):
        gatec.convert_(two, gate(after), inputs=X)


def test_a_refusal_in_the_middle_leaves_that_site_and_no_other():
    model = nn.Sequential(mlp(), mlp(), mlp())

    def after(site, here, up):
        scale = site.add("scale", lambda: nn.Parameter(torch.ones(())), near=up)
        if site.path == "1":
            site.refuse("not the second")
        return here * scale

    gated = gatec.convert(model, gate(after), inputs=X)
    assert [(e.site, e.verdict, e.why) for e in gatec.report(gated).edits] == [
        ("0.2", "put", ""), ("1.2", "left", "not the second"), ("2.2", "put", "")
    ]  # fmt: skip
    assert sorted(set(gated.state_dict()) - set(model.state_dict())) == ["0.0.scale", "2.0.scale"]
    assert type(gated[1]) is nn.Sequential and torch.equal(gated(X), model(X))


def test_a_name_that_is_taken():
    class Taken(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.gate = nn.Linear(8, 16), nn.Linear(16, 8), nn.Parameter(torch.zeros(3))
            self.up_gate = 3

        def forward(self, x):
            return self.down(F.relu(self.up(x))) + self.gate.sum()

    with pytest.raises(gatec.GatecError, match=r"\(model\): Taken already has an attribute up_gate\n"):
        gatec.convert(Taken(), "prune", inputs=X)
    free = Taken()
    del free.up_gate
    gated = gatec.convert(free, "prune", inputs=X)
    assert sorted(set(gated.state_dict()) - set(free.state_dict())) == ["up_gate"]
    assert torch.equal(gated(X), free(X))


def test_a_model_that_cannot_be_copied():
    class Stuck(nn.Sequential):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle a lock")

    model = Stuck(*mlp())
    words = r"^gatec: a model that can be copied\n  found TypeError: cannot pickle a lock\n  try   gatec.convert_\(model, ...\) works in place$"
    with pytest.raises(gatec.GatecError, match=words):
        gatec.convert(model, "prune", inputs=X)
    assert isinstance(gatec.convert_(model, "prune", inputs=X), Stuck)


def test_called_with_other_shapes():
    """A shape that the model itself does not take is the model's own error, not gatec's."""
    model = mlp()
    gated = gatec.convert(model, "glu", inputs=X)
    for wrong in (torch.randn(4, 7), torch.randn(())):
        with pytest.raises(RuntimeError) as theirs:
            model(wrong)
        with pytest.raises((RuntimeError, gatec.GatecError)) as ours:
            gated(wrong)
        assert str(theirs.value).splitlines()[0][:40] in str(ours.value)
    assert torch.equal(gated(X), model(X))


def test_report_of_a_model_that_was_not_rewritten():
    with pytest.raises(
        gatec.GatecError,
        match=r'^gatec: a model that gatec has rewritten\n  found Sequential\n  try   gatec.convert\(model, "glu"\)$',
    ):
        gatec.report(mlp())


def test_a_model_that_does_not_know_its_sizes_yet():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(8))
    words = (
        "^gatec: parameters with values\n  found none yet in 0.weight\n  where Sequential\n"
        "  try   run the model once, then give it to gatec$"
    )
    with pytest.raises(gatec.GatecError, match=words):
        gatec.convert(model, "prune", inputs=X)
    assert type(model[0]) is nn.LazyLinear


def test_why_says_what_convert_would_of_a_layer_that_is_parametrized():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

        def forward(self, x):
            return x + self.inner(x)

    x = torch.randn(2, 8)
    for edit in gatec.why(Branch(), "wrap", inputs=x):
        assert (edit.verdict == "put") == (edit.why == "could be put")
        with pytest.raises(gatec.GatecError) if edit.verdict != "put" else contextlib.nullcontext():
            gatec.convert(Branch(), "wrap", inputs=x)


class TwoForms(nn.Module):
    """Its block is an MLP without a weight of its own, and none that a pass knows with one."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x, w=None):
            return self.down(F.relu(self.up(x) if w is None else (x @ w).cumsum(-1) + self.up(x)))

    def __init__(self):
        super().__init__()
        self.block, self.w = self.Block(), nn.Parameter(torch.randn(8, 16))

    def forward(self, x):
        return self.block(self.block(x), self.w)


def test_a_block_that_is_called_in_two_forms_needs_the_place_in_both():
    model, x = TwoForms(), torch.randn(3, 8)
    reason = "the glu place at up, down is not there in this call"
    assert [e.why for e in gatec.why(model, "glu", inputs=x) if e.site == "block"] == [reason]
    with pytest.raises(gatec.GatecError, match=reason):
        gatec.convert(model, "glu", inputs=x)
