"""What was done to a model and what it costs now: as text, as JSON, and as a page with pictures."""

from gatec.report.costs import Cost, costs
from gatec.report.report import Report, attach, report

__all__ = ["Cost", "Report", "attach", "costs", "report"]
