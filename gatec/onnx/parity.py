"""The proof of an export: onnxruntime against eager, at the traced shape and at others."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gatec.errors import GatecError
from gatec.onnx.axes import Axis, Tensors, resized
from gatec.onnx.exported import Parity
from gatec.onnx.flat import Flat

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

TOLERANCE = {torch.float16: 1e-2, torch.float64: 1e-9}
HIDDEN = (
    "positions that attention_mask hides were not compared: they attend to nothing, "
    "and PyTorch's own forms of attention disagree about the result"
)
Outputs = tuple[list[Tensor], list[Tensor], list[Tensor] | None]
CHEAP = 20_000_000  # parameters up to which a float64 twin is made


def runtime() -> None:
    if onnxruntime is None:
        raise GatecError(
            "onnxruntime, to prove that the file computes what the model does",
            found="no such package",
            hint="pip install gatec[onnx]",
        )


def proven(
    file: Path,
    flat: Flat,
    tensors: Tensors,
    axes: list[Axis],
    count: int,
    tolerance: float | None,
    more: Sequence[tuple[str, Tensors]] = (),
) -> tuple[tuple[Parity, ...], list[str]]:
    session, exact = load(file), precise(flat)
    rows, notes = [], []
    inputs = [(label(sizes), resized(tensors, sizes)) for sizes in shapes(axes, count)]
    for shape, given in [*inputs, *more]:
        outputs = computed(session, flat, exact, given, shape)
        row = measured(outputs, shape)
        allowed = tolerance if tolerance is not None else default(flat, row)
        seen = visible(given)
        if row.max_rel > allowed and seen is not None:
            row, notes = measured(outputs, shape, seen), [HIDDEN]
        if not row.max_rel <= allowed:
            raise GatecError(
                f"onnxruntime and eager within {allowed:.1e} of each other",
                found=f"a relative difference of {row.max_rel:.1e} at {row.shape}",
                where=type(flat.model).__name__,
                hint="tolerance=..., or static=[...] if only one size goes wrong",
            )
        rows.append(row)
    return tuple(rows), notes


def visible(tensors: Tensors) -> Tensor | None:
    """Which tokens of a decoder count; a padding token on the left attends to nothing at all."""
    mask = tensors.get("attention_mask")
    padded = mask is not None and mask.dim() == 2 and not mask.all()
    return mask.bool() if mask is not None and padded and len(decoder(tensors)) == 0 else None


def decoder(tensors: Tensors) -> list[str]:
    return [name for name in tensors if name.startswith("decoder_")]


def label(sizes: dict[Axis, int]) -> str:
    return " ".join(f"{axis.name}={size}" for axis, size in sizes.items()) or "as given"


def load(file: Path) -> "onnxruntime.InferenceSession":
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise GatecError(
            "a file that onnxruntime loads",
            found=reason(error),
            hint="opset=20; a bfloat16 model as model.float()",
        ) from error


def shapes(axes: list[Axis], count: int) -> list[dict[Axis, int]]:
    """As traced; then everything longer, one row and shorter, and longer still."""
    if not axes:
        return [{}]
    longer = [{a: a.size + i * a.steps[0] for a in axes} for i in range(1, max(count, 2))]
    short = {a: 1 if a.kind == "batch" else max(2, a.size - 1) for a in axes}
    kept = {a: a.size if a.kind in ("height", "width", "length") else n for a, n in short.items()}
    return [{a: a.size for a in axes}, *[longer[0], kept, *longer[1:]][:count]]


def computed(
    session: "onnxruntime.InferenceSession",
    flat: Flat,
    exact: Flat | None,
    tensors: Tensors,
    shape: str,
) -> Outputs:
    want = [t.cpu() for t in flat(*tensors.values())]
    feeds = {name: t.cpu().numpy() for name, t in tensors.items()}
    try:
        got = [torch.from_numpy(a) for a in session.run(None, feeds)]
    except Exception as error:
        raise GatecError(
            "a file that onnxruntime runs at sizes which were not traced",
            found=reason(error),
            where=f"{type(flat.model).__name__} at {shape}",
            hint="static=[...] with the names of the sizes that the model fixes",
        ) from error
    return got, want, truth(exact, tensors)


def truth(exact: Flat | None, tensors: Tensors) -> list[Tensor] | None:
    if exact is None:
        return None
    doubles = [t.double() if t.is_floating_point() else t for t in tensors.values()]
    try:
        return [t.cpu() for t in exact(*doubles)]
    except Exception:  # some operators have no float64 form
        return None


def measured(outputs: Outputs, shape: str, seen: Tensor | None = None) -> Parity:
    got, want, exact = outputs
    drift = [distance(g, w, seen) for g, w in zip(got, want, strict=True)]
    own = [distance(w, t, seen)[1] for w, t in zip(want, exact or [], strict=False)]
    far, share = (max(column) for column in zip(*drift, strict=True))
    return Parity(shape, far, share, max(own) if own else None)


def reason(error: Exception) -> str:
    """Runtime errors carry their own source path in front of the reason."""
    line = str(error).strip().splitlines()[0]
    return re.sub(r"^.*Status Message: (/\S+ .*?\) )?", "", line)


def distance(a: Tensor, b: Tensor, seen: Tensor | None = None) -> tuple[float, float]:
    """Largest difference, and that as a share of the largest value; infinities must agree."""
    if seen is not None and a.shape[:2] == b.shape[:2] == seen.shape:
        a, b = a[seen], b[seen]
    a, b = a.double(), b.double()
    if a.shape != b.shape or not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf"), float("inf")
    a, b = a[a.isfinite()], b[b.isfinite()]
    if not b.numel():
        return 0.0, 0.0
    far = (a - b).abs().max().item()
    return far, far / max(b.abs().max().item(), 1e-30)


def default(flat: Flat, row: Parity) -> float:
    """Loose enough for another order of summation, and for a model that is itself badly posed."""
    dtype = next((p.dtype for p in flat.parameters()), torch.float32)
    return max(TOLERANCE.get(dtype, 1e-4), 10 * (row.eager or 0))


def precise(flat: Flat) -> Flat | None:
    """The model in float64, where that costs little and the model allows it."""
    weights = list(flat.parameters())
    small = sum(p.numel() for p in weights) <= CHEAP
    if not small or any(p.dtype != torch.float32 for p in weights):
        return None
    return flat.on(copy.deepcopy(flat.model).double())
