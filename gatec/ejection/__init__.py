"""eject(): the kernels and launchers of a model as a package of its own, that needs torch and triton and no gatec."""

from gatec.ejection.package import eject

__all__ = ["eject"]
