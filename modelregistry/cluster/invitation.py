"""What a site gives to a machine that is to join: one text, for its standard input, never for a command line.

It holds the cluster's token and the key of the host's certificate: a reader of it can join in its place.
"""

import base64
import json
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from modelregistry.cluster.access import AUTHORITY, CERTIFICATE, KEY, TOKEN
from modelregistry.host_port import split_host_port

LONGEST = 65_536  # characters
FILES = (TOKEN, AUTHORITY, CERTIFICATE, KEY)


class NoInvitation(ValueError):
    """The text is not one that `addhost` printed, or not all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """`cluster`: HOST:PORT of its head; `join_port`: of the join server there; `gpus`: how many the host has.

    `models`: where the site keeps models' files, and so the host: a model's path is the same on all.
    """

    name: str
    address: str
    cluster: str
    join_port: int
    ray: str
    python: str
    gpus: int
    files: dict[str, str]
    models: str = ""

    @classmethod
    def read(cls, text: str) -> Self:
        """Return what the text says. Raises NoInvitation."""
        if len(text) > LONGEST:
            raise NoInvitation(f"an invitation has {LONGEST} characters at most")
        try:
            found = json.loads(base64.b64decode("".join(text.split()), validate=True))
            made = cls(
                **{name: str(found[name]) for name in ("name", "address", "cluster", "ray", "python")},
                join_port=int(found["join_port"]),
                gpus=int(found["gpus"]),
                files={name: str(found["files"][name]) for name in FILES},
                models=str(found.get("models", "")),
            )
            split_host_port(made.cluster)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NoInvitation("this is not all of what `manage.py addhost` printed") from error
        return made

    def written(self) -> str:
        return "\n".join(textwrap.wrap(base64.b64encode(json.dumps(asdict(self)).encode()).decode(), 76))

    def write_files(self, directory: Path) -> None:
        """Write the token and the certificates, readable by this user alone."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in FILES:
            path = directory / name
            path.touch(mode=0o600)
            path.write_text(self.files[name])
