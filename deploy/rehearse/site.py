"""The machine of portal and gateway, as OPERATIONS.md says: installed, called, upgraded, restored, looked at."""

import json
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.rehearse.authority import Authority
from deploy.rehearse.bundles import ROOT, Bundle
from deploy.rehearse.directory import MEMBER, OPERATOR, RESEARCH, Directory
from deploy.rehearse.machines import Caller, Machine, boot
from deploy.rehearse.protocol import Deviation, Step

NAME = "llm.example.co.jp"
URL = f"https://{NAME}"
TENANT = "research"
ENVIRONMENT = "/etc/madoguchi/environment"
MODELS = "/srv/models"
STRANGER = "daemon"  # an account of the system that has nothing to do with any of this
BACKUP = f"""
install -d -o madoguchi -m 700 /var/backups/madoguchi
echo BACKUP_DIR=/var/backups/madoguchi >> {ENVIRONMENT}
systemctl reload madoguchi-portal && systemctl restart madoguchi-supervisor
systemctl enable --quiet --now madoguchi-backup.timer
systemctl start madoguchi-backup && journalctl -u madoguchi-backup -n 3 --no-pager
"""
UNITS = ("madoguchi-portal", "madoguchi-supervisor")


def fill_in(example: str, settings: Mapping[str, str]) -> str:
    """Return the example of settings as an operator fills it in: without its first line, with these values.

    Raises Deviation for a setting of which it has no line.
    """
    lines, left = example.splitlines()[1:], dict(settings)
    for number, line in enumerate(lines):
        name = line.lstrip("#").partition("=")[0]
        if name in left:
            lines[number] = f"{name}={left.pop(name)}"
    if left:
        raise Deviation(f"environment.example has no line for {', '.join(left)}")
    return "\n".join([*lines, ""])


def configure_nginx(text: str) -> str:
    """Return the shipped nginx.conf as it is: this site has the name of its example."""
    if text.count(f"server_name {NAME};") < 2:
        raise Deviation("nginx.conf has another example of a name than the book")
    return text


@dataclass
class Site:
    machine: Machine
    authority: Authority
    directory: Directory
    desk: Caller
    database_password: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    key: str = ""

    # --- Install and upgrade
    def prepare(self) -> None:
        """Do what "Prepare" says, but for apt-get: the packages are on the machine."""
        password = f"{self.database_password}\n" * 2
        self.machine.run("runuser -u postgres -- createuser --pwprompt madoguchi", given=password)
        self.machine.run(
            "runuser -u postgres -- createdb --owner madoguchi --template template0 --encoding UTF8 madoguchi"
        )
        self.machine.put(self.authority.certificate, "/usr/local/share/ca-certificates/company.crt")
        self.machine.run("update-ca-certificates")

    def install(self, bundle: Bundle, step: Step) -> None:
        """Do what "Install" says, from the archive to nginx."""
        self.machine.put(bundle.archive, f"/srv/{bundle.archive.name}")
        self.machine.run(f"cd /srv; tar -xf {bundle.archive.name}")
        install = f"cd /srv; {bundle.name}/deploy/install --sum {bundle.sum}"
        first = self.machine.ask(f"{install} 2>&1 || true")
        if f"Fill in {ENVIRONMENT}" not in first:
            raise Deviation(f"the first run is to write {ENVIRONMENT} and to wait: {first[-500:]}")
        self.fill_in_settings()
        began = time.monotonic()
        self.machine.run(f"{install} 2>&1")
        step.see(f"version {bundle.version} in {time.monotonic() - began:.1f} s")
        self.put_nginx_before()
        step.see(self.show_units())

    def fill_in_settings(self) -> None:
        example = self.machine.run(f"cat {ENVIRONMENT}")
        values = {
            "DATABASE_URL": f"postgres://madoguchi:{self.database_password}@127.0.0.1/madoguchi",
            "PUBLIC_URL": URL,
            "ALLOWED_HOSTS": f"{NAME},127.0.0.1",
            "TRUSTED_PROXIES": "1",
            **self.directory.settings(),
        }
        tenants = json.dumps({RESEARCH: TENANT}).replace('"', '\\"')
        text = fill_in(example, values) + f'LDAP_GROUP_TENANTS="{tenants}"\nMADOGUCHI_MODELS={MODELS}\n'
        # Written as an editor does: owner and mode of the file stay.
        self.machine.run(f"cat > {ENVIRONMENT}", given=text)

    def put_nginx_before(self) -> None:
        certificate, key = self.authority.issue(NAME)
        self.machine.put(certificate, f"/etc/ssl/certs/{NAME}.pem")
        self.machine.put(key, f"/etc/ssl/private/{NAME}.key")
        configured = configure_nginx(self.machine.run("cat /opt/madoguchi/current/deploy/nginx.conf"))
        self.machine.write("/etc/nginx/conf.d/madoguchi.conf", configured)
        self.machine.run("systemctl reload nginx")

    def show_units(self) -> str:
        """Return what systemd says of both units. Raises Deviation unless they run."""
        states = [self.machine.ask(f"systemctl is-active {unit}") for unit in UNITS]
        if set(states) != {"active"}:
            raise Deviation(self.machine.ask(f"systemctl status --no-pager {' '.join(UNITS)}")[-1500:])
        return ", ".join(f"{unit} {state}" for unit, state in zip(UNITS, states, strict=True))

    def upgrade(self, bundle: Bundle, step: Step) -> None:
        """Do what "Upgrade" says: unpack, look, install."""
        self.machine.put(bundle.archive, f"/srv/{bundle.archive.name}")
        self.machine.run(f"cd /srv; tar -xf {bundle.archive.name}")
        plan = self.machine.run(f"cd /srv; {bundle.name}/deploy/install --plan")
        if "Nothing was changed." not in plan:
            raise Deviation(f"--plan is to change nothing: {plan}")
        began = time.monotonic()
        self.machine.run(f"cd /srv; {bundle.name}/deploy/install --sum {bundle.sum} 2>&1")
        step.see(f"version {bundle.version} in {time.monotonic() - began:.1f} s")
        if f"Madoguchi {bundle.version} " not in (version := self.manage("--version")):
            raise Deviation(f"madoguchi --version says {version}, not {bundle.version}")

    def back_up(self, step: Step) -> str:
        """Do what "Backup" says, and return the directory of the backup."""
        self.machine.run(BACKUP, seconds=600)
        (made,) = self.machine.run("ls -d /var/backups/madoguchi/madoguchi-*").split()
        # The book: the rehearsal of a restoration makes a database of its own.
        self.machine.run("runuser -u postgres -- psql -qc 'alter role madoguchi createdb'")
        began = time.monotonic()
        self.manage(f"restore --check {made}", seconds=600)
        step.see(f"{made}; restore --check finds it whole in {time.monotonic() - began:.1f} s")
        return made

    def restore(self, machine: Machine, bundle: Bundle, made: str, step: Step) -> None:
        """Do what "Restore" says "on a new machine", which takes the place of the one that had the backup."""
        saved = machine.root / "srv" / "backup"
        shutil.copytree(self.machine.root / made.lstrip("/"), saved)
        self.machine.lose_power()
        self.machine = machine
        boot(machine)
        self.prepare()
        machine.put(bundle.archive, f"/srv/{bundle.archive.name}")
        machine.run(f"cd /srv; tar -xf {bundle.archive.name}")
        install = f"cd /srv; {bundle.name}/deploy/install --sum {bundle.sum}"
        machine.ask(f"{install} 2>&1 || true")
        machine.run(f"tar -xOf /srv/backup/files.tar configuration{ENVIRONMENT} > {ENVIRONMENT}")
        machine.run("install -d -o madoguchi -m 700 /var/backups/madoguchi; chown -R madoguchi: /srv/backup")
        machine.run(f"install -d -o madoguchi -g madoguchi {MODELS}; {install} 2>&1", seconds=600)
        self.put_nginx_before()
        machine.run(
            "systemctl stop madoguchi-gateway.socket madoguchi-pages.socket madoguchi-portal madoguchi-supervisor"
        )
        began = time.monotonic()
        self.manage("restore /srv/backup", seconds=600)
        step.see(f"restored in {time.monotonic() - began:.1f} s")
        machine.run("systemctl start madoguchi-supervisor madoguchi-portal")

    def look_at_security(self, step: Step) -> None:
        """Raise Deviation if another account can read a secret, or a unit is more open than the book says."""
        for unit in UNITS:
            last = self.machine.run(f"systemd-analyze security --no-pager {unit} | tail -1")
            step.see(" ".join(last.split()[1:-1]).replace("Overall exposure level for ", "exposure of "))
        known = (self.database_password, self.directory.service_password, self.key)
        kept = self.machine.run(
            "cat /var/lib/madoguchi/api-key-secret; echo; cat /var/lib/madoguchi/secret-key"
        ).split()
        self.machine.write("/root/secrets", "\n".join([*known, *kept, ""]), 0o600)
        found = self.machine.ask("grep -rlF -f /root/secrets /etc /var /opt /run /srv /tmp --exclude-dir=host").split()
        if not found:
            raise Deviation("the secrets are nowhere: the search is wrong")
        read = [path for path in found if self.machine.ask(f"runuser -u {STRANGER} -- test -r {path} && echo yes")]
        if read:
            raise Deviation(f"another account can read {', '.join(read)}, which hold secrets")
        step.see(f"{len(found)} files hold secrets, and another account can read none of them")
        self.machine.run("rm /root/secrets")

    # --- People and calls
    def manage(self, words: str, seconds: float = 300.0) -> str:
        return self.machine.run(f"madoguchi {words}", seconds=seconds)

    def ask(self, what: str, *words: str, given: str = "") -> Any:
        """Return what a person or a program at a desk finds, see `calls`."""
        done = subprocess.run(
            self.calls(what, *words), input=given, capture_output=True, text=True, cwd=ROOT, check=False
        )
        if done.returncode:
            raise Deviation(f"{what} from a desk failed: {done.stderr[-800:]}")
        return json.loads(done.stdout)

    def calls(self, what: str, *words: str) -> list[str]:
        trust = ("--url", URL, "--trust", str(self.authority.certificate))
        return self.desk.command(sys.executable, "-m", "deploy.rehearse.calls", what, *trust, *words)

    def sign_in(self, step: Step) -> None:
        """Have both people sign in. Raises Deviation unless only one of them is an operator."""
        examined = self.manage(f"checkdirectory {OPERATOR} 2>&1")
        if "FAIL" in examined:
            raise Deviation(f"checkdirectory: {examined}")
        step.see("checkdirectory finds nothing wrong")
        for name, operations in ((OPERATOR, 200), (MEMBER, 403)):
            found = self.ask("sign-in", "--name", name, given=self.directory.passwords[name])
            if found != {"signed_in": True, "operations": operations, "home": 200}:
                raise Deviation(f"{name} signed in and found {found}")
            step.see(f"{name} signs in, /operations/ answers {operations}")

    def register_demo(self, bundle: Bundle, step: Step) -> None:
        """Install the engine and register the model that the bundle brings."""
        self.manage(f"installengine llama.cpp --from /srv/{bundle.name}/engines/llama.cpp")
        self.machine.run(f"install -d -o madoguchi -g madoguchi {MODELS}")
        chat = next(name for name in self.machine.run(f"ls /srv/{bundle.name}/models").split() if "Instruct" in name)
        path = self.manage(f"importmodel /srv/{bundle.name}/models/{chat}").splitlines()[-1]
        # One thread: engines of several hosts have the same few cores here, and threads that wait for each other crawl.
        self.manage(f"registermodel demo --engine llama.cpp --path {path} --context 8192 --slots 4 --arg=--threads=1")
        began = time.monotonic()
        self.wait_for_replicas(1)
        step.see(f"the model answers after {time.monotonic() - began:.1f} s")

    def issue_key(self) -> None:
        self.key = self.manage(f"createkey --tenant {TENANT} --user {MEMBER} --name rehearsal").split()[-1]

    def stream(self, step: Step) -> None:
        found = self.ask("stream", "--key", self.key, "--model", "demo")
        if found["why"]:
            raise Deviation(f"a stream through TLS: {found['why']}")
        step.see(f"a stream of {found['tokens']} tokens through TLS, whole, in {found['seconds']:.1f} s")

    def count_replicas(self) -> int:
        """Return how many replicas of the model the gateway may send calls to."""
        fetch = (
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/metrics', timeout=9).read().decode())"
        )
        metrics = self.machine.ask(f'python3 -c "{fetch}"')
        found = re.search(r'^madoguchi_replicas_ready\{[^}]*model="demo"[^}]*\} (\d+)', metrics, re.M)
        return int(found[1]) if found else 0

    def wait_for_replicas(self, least: int, most: int = 9, seconds: float = 240.0) -> None:
        """Return when the gateway may send calls to so many replicas of the model."""
        deadline = time.monotonic() + seconds
        while not least <= self.count_replicas() <= most:
            if time.monotonic() > deadline:
                shown = "madoguchi models; madoguchi hosts; journalctl -u madoguchi-supervisor -n 20 --no-pager"
                found = self.machine.ask(shown)[-2500:]
                raise Deviation(f"there are not {least} to {most} replicas after {seconds:.0f} s: {found}")
            time.sleep(0.3)


class UnderLoad:
    """Calls that go on from entering to leaving; then `found` has what became of them.

    Leaving raises Deviation, with what the load printed, if the load itself failed.
    """

    def __init__(self, site: Site, streams: int = 2) -> None:
        words = ("--key", site.key, "--model", "demo", "--streams", str(streams))
        self.command = site.calls("load", *words)
        self.found: dict[str, Any] = {}

    def __enter__(self) -> "UnderLoad":
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        printed, error = self.process.communicate("", timeout=400)
        if self.process.returncode == 0:
            self.found = json.loads(printed)
        elif kind is None:  # else what failed under the load is the reason
            raise Deviation(f"the load itself failed with status {self.process.returncode}: {error[-800:]}")

    def check(self, began: float = 0.0, ended: float = 0.0) -> None:
        """Raise Deviation if a call failed, except between these two times."""
        failures = [why for why in self.found["failures"] if not began <= float(why.split()[0]) <= ended]
        if failures:
            raise Deviation(f"calls failed: {failures[:3]}")

    def describe(self) -> str:
        """Return the figures as a sentence."""
        found = self.found
        broken = Counter(failure.split()[1] for failure in found["failures"])
        return (
            f"{found['calls']} calls, {found['streams']} streams ({found['tokens']} tokens), {found['pages']} pages; "
            f"not whole: {broken['calls']} calls, {broken['streams']} streams, {broken['pages']} pages; slowest call "
            f"{found['slowest_call']:.1f} s, longest pause within a stream {found['longest_pause']:.1f} s"
        )
