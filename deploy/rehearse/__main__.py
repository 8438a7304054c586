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
from contextlib import ExitStack
from pathlib import Path

from deploy.rehearse import images
from deploy.rehearse.authority import Authority
from deploy.rehearse.bundles import ROOT, Bundle, make_both
from deploy.rehearse.cluster import Cluster
from deploy.rehearse.directory import NAME as DIRECTORY
from deploy.rehearse.directory import Directory
from deploy.rehearse.machines import Room, boot, network
from deploy.rehearse.protocol import Deviation, Protocol, StepFailed
from deploy.rehearse.site import NAME as SITE
from deploy.rehearse.site import Site, UnderLoad

NEEDED = ("debootstrap", "systemd-nspawn", "openssl", "ip", "nsenter", "git", "msgfmt")
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
            rehearse(protocol, room, Authority(place / "authority"), bundles)
        except StepFailed as error:
            sys.exit(f"rehearse: {error}")
    facts = {
        "version": f"{bundles[0].version}, then {bundles[1].version}",
        "hosts": f"Debian 12, Python 3.11, no GPU; kernel {platform.release()}",
        "machine": f"{os.cpu_count()} cores for all hosts and callers together",
    }
    protocol.write(options.to, datetime.datetime.now(datetime.UTC).date().isoformat(), facts)
    print(f"Written: {options.to}")


def check_machine() -> None:
    if os.geteuid() != 0:
        sys.exit("rehearse: this has to be root: it boots containers.")
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        sys.exit(f"rehearse: this machine lacks {', '.join(missing)} (apt-get install debootstrap systemd-container)")


def rehearse(protocol: Protocol, room: Room, authority: Authority, bundles: tuple[Bundle, Bundle]) -> None:
    first, following = bundles
    directory = Directory()
    with protocol.step("Boot the site and the company directory") as step:
        machine, holder = room.machine("site", "site"), room.machine("directory", "directory")
        room.network.names[SITE], room.network.names[DIRECTORY] = machine.address, holder.address
        for each in (machine, holder):
            step.see(f"{each.name}: systemd is {boot(each)}")
        directory.serve(holder, authority)
    site = Site(machine, authority, directory, room.caller("desk"))
    with protocol.step("Install the bundle, without a network") as step:
        site.prepare()
        site.install(first, step)
    with protocol.step("Sign in with the directory, through TLS") as step:
        site.sign_in(step)
    with protocol.step("Register a model, and call it") as step:
        site.register_demo(first, step)
        site.issue_key()
        site.stream(step)
    cluster = Cluster(site)
    with protocol.step("Join two GPU hosts, and have the model run on them") as step:
        cluster.start_head(first)
        for name in ("gpu1", "gpu2"):
            host = room.machine(name, "gpu")
            boot(host)
            cluster.join(host, first, step)
        cluster.share_model(step)
        site.stream(step)
    with protocol.step("Upgrade the site and then its hosts, under load") as step:
        with UnderLoad(site) as load:
            time.sleep(10)
            site.upgrade(following, step)
            cluster.upgrade(following, step)
            time.sleep(20)
        step.see(load.describe())
        if load.found["failures"]:
            raise Deviation(f"calls failed: {load.found['failures'][:3]}")
    with protocol.step("A GPU host loses its power, under load") as step:
        with UnderLoad(site) as load:
            time.sleep(10)
            cluster.lose(cluster.hosts[0], step)
            time.sleep(20)
        step.see(load.describe())
    with protocol.step("Look at what others may read, and at the units") as step:
        site.look_at_security(step)
    with protocol.step("Back up") as step:
        made = site.back_up(step)
    with protocol.step("Restore on a fresh host in its place") as step:
        site.restore(room.replace(site.machine, "site"), following, made, step)
        cluster.start_head(following)
        site.sign_in(step)
        site.wait_for_replicas(1)
        site.stream(step)


if __name__ == "__main__":
    main(sys.argv[1:])
