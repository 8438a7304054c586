"""What an agent says of itself, as far as it is kept."""

from dataclasses import dataclass

from modelregistry.wire_bounds import Name


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDescription:
    """`address`: of its host. `fenced`: whether a fence runs. `certificate_ends`: Unix seconds.

    None, or "": an agent of an earlier version does not say.
    """

    address: Name
    name: Name = ""
    version: Name = ""
    python: Name = ""
    boot: Name = ""
    pid: int = 0
    fenced: bool | None = None
    certificate_ends: float | None = None
