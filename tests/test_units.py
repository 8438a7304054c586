"""What systemd says of the units in deploy/, without running them."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest

from apiproxy.server.handover import START_SECONDS

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
PORTAL = DEPLOY / "madoguchi-portal.service"


class Unit(configparser.RawConfigParser):
    """A unit's file; of settings that occur several times the last."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#",), interpolation=None)
        self.read_string(path.read_text().replace("\\\n", " "))

    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.mark.parametrize(("name", "most"), [("portal", 3.0), ("supervisor", 5.0), ("backup", 3.0)])
def test_a_unit_is_as_closed_as_its_work_allows(name, most):
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", DEPLOY / f"madoguchi-{name}.service"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", shown)
    assert exposure is not None
    assert float(exposure[1]) <= most


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.service")), ids=lambda path: path.stem)
def test_state_is_for_the_service_user_alone(path):
    service = Unit(path)["Service"]
    assert service["StateDirectoryMode"] == "0700"
    assert service["UMask"] == "0077"


@pytest.mark.parametrize("name", ["portal", "supervisor", "host"])
def test_one_process_without_memory_does_not_end_those_beside_it(name):
    assert Unit(DEPLOY / f"madoguchi-{name}.service")["Service"]["OOMPolicy"] == "continue"


def test_the_portal_gets_its_listeners_by_the_names_and_ports_that_nginx_conf_has():
    service = Unit(PORTAL)
    ports = {}
    for name in service["Unit"]["Requires"].split():
        found = Unit(DEPLOY / name)["Socket"]
        assert found["Service"] == PORTAL.name
        ports[found["FileDescriptorName"]] = found["ListenStream"]
    text = (DEPLOY / "nginx.conf").read_text()
    for upstream, listener in (("madoguchi", "gateway"), ("madoguchi_portal", "portal")):
        assert re.search(rf"upstream {upstream} \{{\s+server {re.escape(ports[listener])};", text)
    assert service["Unit"]["Requires"] == service["Install"]["Also"]


def test_a_reload_asks_the_process_that_the_unit_starts():
    service = Unit(PORTAL)["Service"]
    control = re.compile(r"--control (\S+)")
    assert control.findall(service["ExecReload"]) == control.findall(service["ExecStart"])
    assert f"/run/{service['RuntimeDirectory']}/control" in control.findall(service["ExecStart"])


def test_a_reload_may_take_as_long_as_a_new_run_is_waited_for():
    assert float(Unit(PORTAL)["Service"]["TimeoutStartSec"]) > START_SECONDS
