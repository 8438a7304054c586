"""What the tests of a cluster measured, shown at the end of a run."""

FOUND: list[str] = []


def note(what: str, seconds: float | None = None, unit: str = "s") -> None:
    FOUND.append(what if seconds is None else f"{what}: {seconds:.1f} {unit}")
