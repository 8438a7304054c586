"""python tests/ray/other_work.py ADDRESS: other work on a cluster of Ray's, which knows nothing of ours.

Runs in Ray's Python. Each line of its input is a request: {"take": {resource: amount}} books that, as any program may,
under "name" if there is one, and {"give": true} ends all that it has booked. Each is answered by the names and states
of the cluster's bookings.
"""

import json
import sys

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group


def main(address: str) -> None:
    ray.init(address, namespace="other", log_to_driver=False, configure_logging=False)
    taken = []
    for line in sys.stdin:
        asked = json.loads(line)
        if bundle := asked.get("take"):
            taken.append(placement_group([bundle], name=asked.get("name", "training")))
            assert taken[-1].wait(20), "there was no room for it"
        if asked.get("give"):
            while taken:
                remove_placement_group(taken.pop())
        found = [[one["name"], one["state"]] for one in placement_group_table().values() if one["state"] != "REMOVED"]
        print(json.dumps({"bookings": sorted(found)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
