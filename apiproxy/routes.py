"""Which paths are the gateway's."""

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


def is_gateways(path: str) -> bool:
    """Whether the gateway answers this path itself; any other is the portal's."""
    return path.startswith("/v1/") or path in PROBES
