"""From a live module and one call of it to a torch.fx graph that speaks only of that module's own forward."""

from gatec.capture.applied import inside
from gatec.capture.caches import emptied
from gatec.capture.record import Call, evaluating, record, untouched
from gatec.capture.tracer import Trace, trace
from gatec.capture.unit import Nothing, Unit, install, unit_of

__all__ = [
    "Call",
    "Nothing",
    "Trace",
    "Unit",
    "emptied",
    "evaluating",
    "inside",
    "install",
    "record",
    "trace",
    "unit_of",
    "untouched",
]
