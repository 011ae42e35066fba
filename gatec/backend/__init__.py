"""torch.compile(model, backend=gatec.backend): gates are recognised and fused in what Dynamo captured."""

from gatec.backend.compiled import Compilations, Compiled
from gatec.backend.front import Backend, backend

__all__ = ["Backend", "Compilations", "Compiled", "backend"]
