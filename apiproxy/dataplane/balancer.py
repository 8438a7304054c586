"""Chooses the replica that has least to do, and avoids one that just refused."""

from collections.abc import Sequence

from apiproxy.dataplane.catalogue import Replica

# A replica that refused a connection is not tried for so long, unless there is no other. The supervisor needs
# about as long to notice and take it off the catalogue.
PENALTY = 2.0


class Balancer:
    def __init__(self) -> None:
        self._in_flight: dict[int, int] = {}
        self._avoid_until: dict[int, float] = {}
        self.unreachable: frozenset[int] = frozenset()  # ids of replicas on hosts that are silent

    def choose(self, replicas: Sequence[Replica], now: float, *, but: int | None = None) -> Replica | None:
        """Return the replica with the fewest calls in flight that can be reached, never the one with the id `but`.

        None if there is none.
        """
        best: Replica | None = None
        best_rank: tuple[bool, int] = (True, 0)
        for replica in replicas:
            if replica.id == but or replica.id in self.unreachable:
                continue
            rank = (self._avoid_until.get(replica.id, 0.0) > now, self._in_flight.get(replica.id, 0))
            if best is None or rank < best_rank:
                best, best_rank = replica, rank
        return best

    def keep_reachable(self, replicas: Sequence[Replica]) -> Sequence[Replica]:
        return [one for one in replicas if one.id not in self.unreachable] if self.unreachable else replicas

    def keep_willing(self, replicas: Sequence[Replica], now: float) -> Sequence[Replica]:
        """Return those that can be reached, without those that refused a moment ago unless there are no others."""
        reachable = self.keep_reachable(replicas)
        return [one for one in reachable if self._avoid_until.get(one.id, 0.0) <= now] or reachable

    def add_call(self, replica: Replica) -> None:
        self._in_flight[replica.id] = self._in_flight.get(replica.id, 0) + 1

    def remove_call(self, replica: Replica) -> None:
        left = self._in_flight[replica.id] - 1
        if left:
            self._in_flight[replica.id] = left
        else:
            del self._in_flight[replica.id]

    def running(self, replica: Replica) -> int:
        """Return how many calls are in flight there."""
        return self._in_flight.get(replica.id, 0)

    def running_at(self, replica: int) -> int:
        """Return how many calls are in flight at the replica with this id."""
        return self._in_flight.get(replica, 0)

    def penalise(self, replica: Replica, now: float) -> None:
        self._avoid_until[replica.id] = now + PENALTY

    def skipped_replicas(self, now: float) -> frozenset[int]:
        """Return the ids of replicas that refused a moment ago."""
        self._avoid_until = {replica: until for replica, until in self._avoid_until.items() if until > now}
        return frozenset(self._avoid_until)
