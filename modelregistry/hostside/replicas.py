"""What a replica is called between a supervisor and its hosts."""

from typing import NamedTuple


class ReplicaKey(NamedTuple):
    """A replica: the model's id and the replica's number."""

    model: int
    number: int
