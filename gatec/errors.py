"""The two ways gatec says no: an error to its user, and a refusal of one site."""


class GatecError(Exception):
    """What was wanted, what was found, where, and what to try: four rows at most."""

    def __init__(self, wanted: str, *, found: str = "", where: str = "", hint: str = "") -> None:
        self.wanted, self.found, self.where, self.hint = wanted, found, where, hint
        super().__init__(wanted, found, where, hint)

    def __str__(self) -> str:
        rows = [("found", self.found), ("where", self.where), ("try", self.hint)]
        return "\n".join([f"gatec: {self.wanted}", *(f"  {k:<6}{v}" for k, v in rows if v)])


class Refused(Exception):
    """One site was declined. Not an error: it becomes a line of the report."""
