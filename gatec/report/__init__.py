"""What was done to a model and what it costs now: as text, as JSON, and as a page with pictures."""

from gatec.report.costs import Cost, costs
from gatec.report.narrowed import Narrowed
from gatec.report.report import Report, attach, report

__all__ = ["Cost", "Narrowed", "Report", "attach", "costs", "report"]
