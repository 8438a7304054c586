"""python -m deploy.rehearse: does on clean hosts of Debian 12 what the book says, and writes deploy/REHEARSAL.md.

Of the commit that is checked out, as root. Ends at the first thing that is not as the book says, and names the step.
"""

import argparse
import datetime
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from deploy.rehearse import images
from deploy.rehearse.authority import Authority
from deploy.rehearse.bundles import ROOT, Bundle, make_both
from deploy.rehearse.cluster import Cluster
from deploy.rehearse.directory import NAME as DIRECTORY
from deploy.rehearse.directory import Directory
from deploy.rehearse.machines import Room, boot, network
from deploy.rehearse.protocol import Protocol, Step, StepFailed
from deploy.rehearse.site import NAME as SITE
from deploy.rehearse.site import Site, UnderLoad

NEEDED = ("debootstrap", "systemd-nspawn", "openssl", "ip", "nsenter", "git", "msgfmt")
BESIDE = 10.0  # seconds of load before and after what is done under it
SETTLED = 10.0  # seconds after the loss of a host in which calls may fail
PAGE = ROOT / "deploy" / "REHEARSAL.md"


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make rehearse", description=__doc__)
    parser.add_argument("--place", type=Path, default=Path("/var/tmp"), help="where hosts are meanwhile (4 GB)")  # noqa: S108
    parser.add_argument("--to", type=Path, default=PAGE, help="the page that is written")
    options = parser.parse_args(words)
    check_machine()
    cache = Path(os.environ.get("MADOGUCHI_CACHE") or Path.home() / ".cache" / "madoguchi") / "rehearsal"
    layers = images.prepare(cache, print)
    protocol = Protocol()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="madoguchi-rehearsal-", dir=options.place)))
        bundles = make_both(place / "bundles")
        room = Room(place / "hosts", stack.enter_context(network()), layers, stack)
        try:
            rehearsal = Rehearsal(room, Authority(place / "authority"), bundles)
            for name, work in STEPS:
                with protocol.step(name) as step:
                    work(rehearsal, step)
        except StepFailed as error:
            sys.exit(f"rehearse: {error}")
    facts = {
        "version": f"{bundles[0].version}, then {bundles[1].version}",
        "hosts": f"Debian 12, Python 3.11, no GPU; kernel {platform.release().partition('-')[0]}",
        "machine": f"{os.cpu_count()} cores for all hosts and callers together",
    }
    protocol.write(options.to, datetime.datetime.now(datetime.UTC).date().isoformat(), facts)
    print(f"Written: {options.to}")


def check_machine() -> None:
    if os.geteuid() != 0:
        sys.exit("rehearse: this has to be root: it boots containers.")
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        sys.exit(f"rehearse: this machine lacks {', '.join(missing)} (apt-get install debootstrap systemd-container)")


class Rehearsal:
    """The steps, in the order of `STEPS`; each goes on from the one before."""

    def __init__(self, room: Room, authority: Authority, bundles: tuple[Bundle, Bundle]) -> None:
        self.room = room
        self.first, self.following = bundles
        machine, self.holder = room.machine("site", "site"), room.machine("directory", "directory")
        room.network.names[SITE], room.network.names[DIRECTORY] = machine.address, self.holder.address
        self.site = Site(machine, authority, Directory(), room.caller("desk"))
        self.cluster = Cluster(self.site)
        self.backup = ""

    def boot(self, step: Step) -> None:
        for each in (self.site.machine, self.holder):
            step.see(f"{each.name}: systemd is {boot(each)}")
        self.site.directory.serve(self.holder, self.site.authority)

    def install(self, step: Step) -> None:
        self.site.prepare()
        self.site.install(self.first, step)

    def sign_in(self, step: Step) -> None:
        self.site.sign_in(step)

    def call(self, step: Step) -> None:
        self.site.register_demo(self.first, step)
        self.site.issue_key()
        self.site.stream(step)

    def join_hosts(self, step: Step) -> None:
        self.cluster.start_head(self.first)
        for name in ("gpu1", "gpu2"):
            host = self.room.machine(name, "gpu")
            boot(host)
            self.cluster.join(host, self.first, step)

    def share_model(self, step: Step) -> None:
        self.cluster.share_model(step)

    def upgrade(self, step: Step) -> None:
        with UnderLoad(self.site) as load:
            time.sleep(BESIDE)
            self.site.upgrade(self.following, step)
            self.cluster.upgrade(self.following, step)
            time.sleep(BESIDE)
        step.see(load.describe())
        load.check()

    def lose_host(self, step: Step) -> None:
        with UnderLoad(self.site) as load:
            time.sleep(BESIDE)
            lost = time.time()
            self.cluster.lose(self.cluster.hosts[0], step)
            time.sleep(max(0.0, lost + SETTLED - time.time()) + BESIDE)
        step.see(load.describe())
        load.check(lost, lost + SETTLED)

    def look_at_security(self, step: Step) -> None:
        self.site.look_at_security(step)

    def back_up(self, step: Step) -> None:
        self.backup = self.site.back_up(step)

    def restore(self, step: Step) -> None:
        fresh = self.room.replace(self.site.machine, "site")
        self.site.restore(fresh, self.following, self.backup, step)

    def call_again(self, step: Step) -> None:
        self.site.sign_in(step)
        self.cluster.start_head(self.following)
        self.site.wait_for_replicas(1)
        self.site.stream(step)


STEPS: tuple[tuple[str, Callable[[Rehearsal, Step], None]], ...] = (
    ("Boot the site and the company directory", Rehearsal.boot),
    ("Install the bundle, without a network", Rehearsal.install),
    ("Sign in with the directory, through TLS", Rehearsal.sign_in),
    ("Register a model, and call it", Rehearsal.call),
    ("Join two GPU hosts", Rehearsal.join_hosts),
    ("Have the model run on both hosts", Rehearsal.share_model),
    ("Upgrade the site and then its hosts, under load", Rehearsal.upgrade),
    ("A GPU host loses its power, under load", Rehearsal.lose_host),
    ("Look at what others may read, and at the units", Rehearsal.look_at_security),
    ("Back up, and rehearse the restoration", Rehearsal.back_up),
    ("Restore on a fresh host in its place", Rehearsal.restore),
    ("Sign in and call there, with the keys of before", Rehearsal.call_again),
)


if __name__ == "__main__":
    main(sys.argv[1:])
