"""Which of several ways to run a region: a kernel only where it was verified on this device and measured faster there."""

from gatec.dispatch.choose import CHOOSER, FAILED, Answer, Budget, Chooser, Side
from gatec.dispatch.verify import Run

__all__ = ["CHOOSER", "FAILED", "Answer", "Budget", "Chooser", "Run", "Side"]
