"""Known reasons why a model does not export as it is, or not at every size, and what helps on a copy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from gatec.onnx.flat import Inputs, twin


@dataclass(frozen=True)
class Remedy:
    symptoms: tuple[str, ...]
    apply: Callable[[nn.Module], nn.Module | None]
    note: str


@dataclass(frozen=True)
class Form:
    """Another form of the same function, to trace where tracing the model itself ties a size down."""

    apply: Callable[[nn.Module, Inputs], nn.Module | None]
    note: str


FORMS: list[Form] = []


def register_form(apply: Callable[[nn.Module, Inputs], nn.Module | None], note: str) -> None:
    """`apply` takes a model and inputs; it returns a copy that computes the same, or None where there is none."""
    FORMS.append(Form(apply, note))


def eager_attention(model: nn.Module) -> nn.Module | None:
    return with_setting(model, "set_attn_implementation", "eager")


def grouped_experts(model: nn.Module) -> nn.Module | None:
    return with_setting(model, "set_experts_implementation", "grouped_mm")


def batched_experts(model: nn.Module) -> nn.Module | None:
    return with_setting(model, "set_experts_implementation", "batched_mm")


def with_setting(model: nn.Module, setter: str, value: str) -> nn.Module | None:
    if not hasattr(model, setter):
        return None
    copied = twin(model)
    getattr(copied, setter)(value)
    return copied


REMEDIES = (
    Remedy(
        ("Cannot view a tensor",),
        eager_attention,
        "attention was exported as its eager form: the fused one has a view that does not trace",
    ),
    Remedy(
        ("data-dependent", "DataDependent"),
        grouped_experts,
        "experts were exported as grouped_mm: a loop over the experts that were hit does not trace",
    ),
    Remedy(
        ("grouped_mm", "histc", "data-dependent", "DataDependent"),
        batched_experts,
        "experts were exported as batched_mm: weights are gathered per token, which is not sparse",
    ),
)


def remedied(error: BaseException, model: nn.Module, tried: list[Remedy]) -> nn.Module | None:
    """A copy of the model to try next, if the error is one that a remedy not yet tried may cure."""
    text = "\n".join(f"{type(e).__name__} {e}" for e in chain(error))
    for remedy in REMEDIES:
        if remedy in tried or not any(symptom in text for symptom in remedy.symptoms):
            continue
        if (copied := remedy.apply(model)) is not None:
            tried.append(remedy)
            return copied
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
