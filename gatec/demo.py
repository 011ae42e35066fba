"""gatec demo: one small Llama, scanned, made a mixture of experts, fused, used and exported."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

import gatec
from gatec import zoo
from gatec.screen import say, table, working

SPEC = (
    "transformers:llama?hidden_size=256,intermediate_size=688,num_hidden_layers=4,"
    "num_attention_heads=8,num_key_value_heads=4,vocab_size=4096"
)
EXPERTS, TOP_K, TOKENS = 8, 2, 20


def show() -> None:
    """Five steps, each under its heading; the timings of all three models last, side by side."""
    began = perf_counter()
    with working("building a Llama"):
        model = zoo.load(SPEC)
        batch = _batch(4096)
    say(f"A Llama of {_size(model)} parameters, 4 layers of width 256, random weights, on the CPU")
    with _step(1, "scan", "which gates it has, and where more could go"):
        say(_indented(gatec.scan(model, inputs=batch)))
    with _step(2, "convert", f"every MLP into {EXPERTS} experts, {TOP_K} of them per token"):
        moe = gatec.convert(model, "moe", inputs=batch, experts=EXPERTS, top_k=TOP_K)
        say(_indented(gatec.report(moe)))
        say(f"  the output moved by {in_words(drift(model, moe, batch))}")
    with _step(3, "fuse", "generated kernels where they are faster, eager where not"):
        fast = gatec.fuse(moe, inputs=batch)
        _kernels(fast)
        say(f"  the output moved by {in_words(drift(moe, fast, batch))}")
    with _step(4, "generate", f"{TOKENS} tokens with the KV cache; still the user's own class"):
        _generate({"model": model, "moe": moe, "fused": fast}, batch)
    about = "ONNX with dynamic batch and length, compared with onnxruntime"
    with tempfile.TemporaryDirectory() as folder, _step(5, "export", about):
        say(_indented(gatec.export(fast, Path(folder) / "model.onnx", inputs=batch)))
    say("")
    _compare({"model": model, "moe": moe, "fused": fast}, batch)
    say(f"\nAll of it in {perf_counter() - began:.0f} s. Next: gatec scan FILE.py:NAME with yours.")


@contextmanager
def _step(number: int, verb: str, about: str) -> Iterator[None]:
    say(f"\n{number}  {verb:<9} {about}")
    began = perf_counter()
    with working(verb):
        yield
    say(f"  {perf_counter() - began:.1f} s")


def _batch(vocabulary: int) -> dict[str, Tensor]:
    ids = torch.randint(vocabulary, (2, 32), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _size(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"


def _indented(thing: object) -> str:
    return "\n".join(f"  {line}" for line in str(thing).splitlines())


def _kernels(model: nn.Module) -> None:
    kernels = gatec.kernels_of(model)
    table([f"  {name}", f"{len(kernel.source.splitlines())} lines of Triton"] for name, kernel in kernels.items())
    if kernels and not torch.cuda.is_available():
        say("  without a GPU each region runs as its own eager graph")


def drift(before: nn.Module, after: nn.Module, batch: dict[str, Tensor]) -> float:
    """How far the output moved, as a share of its size (root mean square)."""
    with torch.no_grad():
        a, b = before(**batch).logits.double(), after(**batch).logits.double()
    return float((a - b).norm() / a.norm())


def in_words(moved: float) -> str:
    """A drift as a person would say it."""
    if moved == 0:
        return "nothing, to the last bit"
    if moved < 1e-5:
        return f"{moved:.0e} of its size, which is rounding"
    if moved < 1e-2:
        return f"{moved:.1%} of its size"
    return f"{moved:.0%} of its size: that is given up for now, and training wins it back"


def _generate(models: dict[str, nn.Module], batch: dict[str, Tensor]) -> None:
    prompt = {name: value[:1, :8] for name, value in batch.items()}
    rows = []
    for name, model in models.items():
        _tokens(model, prompt, 2)  # the first call pays for what later ones find ready
        began = perf_counter()
        said = _tokens(model, prompt, TOKENS)
        rate = TOKENS / (perf_counter() - began)
        tokens = " ".join(str(int(t)) for t in said[0, 8:14])
        rows.append([f"  {name}", f"{rate:.0f} tokens/s", f"{tokens} ..."])
    table(rows)


def _tokens(model: nn.Module, prompt: dict[str, Tensor], count: int) -> Tensor:
    said: Tensor = model.generate(  # type: ignore[operator]
        **prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return said


def _compare(models: dict[str, nn.Module], batch: dict[str, Tensor]) -> None:
    forward = _timed({name: partial(_forward, m, batch) for name, m in models.items()})
    train = _timed({name: partial(_backward, m, batch) for name, m in models.items()})
    rows = [["", *models], ["parameters", *(_size(m) for m in models.values())]]
    rows += [["forward", *(f"{1e3 * t:.1f} ms" for t in forward.values())]]
    rows += [["and backward", *(f"{1e3 * t:.1f} ms" for t in train.values())]]
    table(rows)


def _forward(model: nn.Module, batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        model(**batch)


def _backward(model: nn.Module, batch: dict[str, Tensor]) -> None:
    model(**batch).logits.float().square().mean().backward()
    model.zero_grad()


def _timed(runs: dict[str, Callable[[], None]], repeats: int = 7) -> dict[str, float]:
    """Medians of interleaved runs, so that a busy moment of the machine hits every column alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = perf_counter()
            run()
            times[name].append(perf_counter() - began)
    return {name: median(seconds[1:]) for name, seconds in times.items()}
