"""File systems of Debian 12, made once out of the packages that this machine's own apt finds, and kept.

A host's root is an overlay: its own changes over a layer of packages over the base. The layers are made with a network;
hosts never have one.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.release.steps import run

SUITE = "bookworm"
FORM = "1"  # of what is done beside installing packages: another one makes all file systems again
BASE = ("systemd-sysv", "dbus", "python3", "ca-certificates", "openssl", "iproute2", "procps")
# What the book has the operator install: OPERATIONS.md on the site, RAY.md there for the head.
LAYERS = {
    "site": ("libldap-2.5-0", "tzdata", "ca-certificates", "postgresql", "nginx", "libgomp1", "redis-server"),
    "directory": ("slapd", "ldap-utils"),
    "gpu": ("tzdata", "libgomp1"),
}
WITHOUT_STARTS = "#!/bin/sh\nexit 101\n"  # policy-rc.d: nothing is started while packages are installed


def find_mirror() -> str:
    """Return where this machine's apt has the packages of Debian 12."""
    form = "$(REPO_URI) $(CODENAME) $(COMPONENT)"
    listed = run("apt-get", "indextargets", "--format", form, "Created-By: Packages")
    for line in listed.splitlines():
        uri, codename, component = line.split()
        if (codename, component) == (SUITE, "main"):
            return uri
    raise SystemExit(f"The sources of apt on this machine have no {SUITE}: hosts are Debian 12.")


def prepare(cache: Path, say: Callable[[str], None]) -> dict[str, list[Path]]:
    """Return the layers of each kind of host, the lowest last; what is missing is made (two minutes)."""
    base = make_once(cache, "base", BASE, say, make_base)
    return {
        kind: [make_once(cache, kind, packages, say, lambda at, names: add_layer(base, at, names)), base]
        for kind, packages in LAYERS.items()
    }


def make_once(
    cache: Path,
    name: str,
    packages: Sequence[str],
    say: Callable[[str], None],
    make: Callable[[Path, Sequence[str]], None],
) -> Path:
    """Return a directory that is there as a whole or not at all."""
    content = hashlib.sha256(" ".join((FORM, SUITE, *BASE, *packages)).encode())
    target = cache / f"{name}-{content.hexdigest()[:12]}"
    if not target.exists():
        say(f"→ file system {name!r} of Debian 12: {' '.join(packages)}")
        draft = cache / f".{name}.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        make(draft, packages)
        draft.rename(target)
    return target


def make_base(at: Path, packages: Sequence[str]) -> None:
    run("debootstrap", "--variant=minbase", f"--include={','.join(packages)}", SUITE, at, find_mirror())
    (at / "etc" / "machine-id").write_text("")  # each host gets its own at its first boot
    (at / "etc" / "hostname").unlink(missing_ok=True)
    (at / "etc" / "resolv.conf").unlink(missing_ok=True)


def add_layer(base: Path, at: Path, packages: Sequence[str]) -> None:
    """Install packages over the base, and keep in `at` what that changed."""
    work, root = at.with_name(f"{at.name}.work"), at.with_name(f"{at.name}.root")
    for path in (work, root):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    with overlay(root, [base], at, work):
        policy, resolver = root / "usr" / "sbin" / "policy-rc.d", root / "etc" / "resolv.conf"
        policy.write_text(WITHOUT_STARTS)
        policy.chmod(0o755)
        shutil.copy("/etc/resolv.conf", resolver)
        apt = ("chroot", root, "apt-get", "-qq", "-y", "-o", "APT::Sandbox::User=root")
        run(*apt, "update", env=environment)
        run(*apt, "install", "--no-install-recommends", *packages, env=environment)
        run(*apt, "clean", env=environment)
        policy.unlink()
        resolver.unlink()
    for path in (work, root):
        shutil.rmtree(path)


@contextmanager
def overlay(root: Path, lower: Sequence[Path], upper: Path, work: Path) -> Iterator[None]:
    """Have `root` show the layers, with changes in `upper`. On leaving it is unmounted."""
    places = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", places, root], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)
