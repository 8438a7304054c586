"""What lets a machine into a cluster of GPU hosts: a token and certificates; and how Ray is given them.

Without both a cluster is not started: Ray's ports run the code of all who reach them, and they listen on every
interface. Ray reads all of it from environment variables. The token is named by its file, so that it is in none.
"""

import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

TOKEN, AUTHORITY, CERTIFICATE, KEY = "token", "ca.crt", "host.crt", "host.key"
VALID_BEFORE = 86_400.0  # seconds that a certificate is valid from before it was issued, for clocks that are behind
SHORTEST_TOKEN = 32  # characters
# Measured on three hosts with 2.60: a node that is cut off is dead after 6 s (by Ray's own values after 62 s).
TUNING = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # A node whose head is away ends itself after so long (60 s by Ray's own value), and its service starts it again
    # until there is a head: engines are not touched by that, and where the head is a new one, nodes join it the sooner.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
    # A node asks its head so often whether it counts as alive there; a new and empty head says no.
    "RAY_raylet_liveness_self_check_interval_ms": "3000",
    # A node that is stopped would wait for its actors to go; agents stay: each restart of a service took 15 s longer.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # Ray would kill its workers, agents among them, where models fill the RAM. Engines are ours to limit.
    "RAY_memory_monitor_refresh_ms": "0",
    # No workers in store: one actor for each host is all that we start.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # Nothing is reported to Ray's makers.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


class NotSecured(Exception):
    """The cluster would be open to others; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterAccess:
    """Where a cluster is, and the directory of the files that let this machine in.

    `address`: HOST:PORT of its head.
    """

    address: str
    secrets: Path

    def environment(self) -> dict[str, str]:
        """Return Ray's variables. Raises NotSecured when a file is missing, or can be read by others."""
        check_secrets(self.secrets)
        return {
            **TUNING,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.secrets / TOKEN),
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": str(self.secrets / CERTIFICATE),
            "RAY_TLS_SERVER_KEY": str(self.secrets / KEY),
            "RAY_TLS_CA_CERT": str(self.secrets / AUTHORITY),
        }


def check_secrets(secrets: Path) -> None:
    """Raise NotSecured unless the token and the certificates are there, for this user alone."""
    for name, what in (
        (TOKEN, "the cluster's token"),
        (AUTHORITY, "the certificate of the cluster's authority"),
        (CERTIFICATE, "this host's certificate"),
        (KEY, "the key of this host's certificate"),
    ):
        path = secrets / name
        try:
            found = path.stat()
            text = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise NotSecured(f"{what} ({path}) cannot be read: {error}") from error
        if name in (TOKEN, KEY) and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise NotSecured(f"{what} ({path}) can be read by other users of this machine: chmod 600 {path}")
        if name == TOKEN and len(text) < SHORTEST_TOKEN:
            raise NotSecured(f"{what} ({path}) has {len(text)} characters: fewer than {SHORTEST_TOKEN} can be guessed")


def tls_context(secrets: Path, *, server: bool) -> ssl.SSLContext:
    """Return one end of TLS that shows a host's certificate, and takes those of the cluster only."""
    purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
    context = ssl.create_default_context(purpose, cafile=str(secrets / AUTHORITY))
    context.load_cert_chain(secrets / CERTIFICATE, secrets / KEY)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def ray_environment(access: ClusterAccess, code: Path) -> dict[str, str]:
    """Return the whole environment of Ray's processes. `code`: the directory that holds `modelregistry`."""
    kept = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
    own = {name: os.environ[name] for name in kept if name in os.environ}
    return {"PATH": os.defpath, **own, "PYTHONPATH": str(code), **access.environment()}
