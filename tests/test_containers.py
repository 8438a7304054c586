"""What deploy/Containerfile and deploy/compose.yaml promise, read from them; building and running needs a builder."""

import re
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
RECIPE = (DEPLOY / "Containerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = sorted(COMPOSE["services"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_writes_to_its_volumes_alone_and_has_no_right_of_root(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "user" in service or service["image"].startswith("${MADOGUCHI_IMAGE")


def test_the_image_runs_as_no_root_and_compose_names_its_user():
    assert re.findall(r"^USER (.+)$", RECIPE, re.MULTILINE) == ["10001:10001"]
    assert "--uid 10001" in RECIPE


def test_a_password_comes_from_a_file_and_each_file_is_declared():
    for service in COMPOSE["services"].values():
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        for name, value in service.get("environment", {}).items():
            if "SECRET" in name or "PASSWORD" in name or name.startswith("DATABASE_URL"):
                assert name.endswith("_FILE")
                assert Path(value).name in service["secrets"]


def test_only_nginx_is_reached_from_outside_and_the_database_where_an_operator_says():
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert {port.rpartition(":")[2] for port in published.pop("network")} == {"80", "443"}
    assert published == {"postgres": ["${POSTGRES_BIND:-127.0.0.1}:${POSTGRES_PORT:-5432}:5432"]}
    # The gateway's and the pages' ports are 127.0.0.1's of the network that both share.
    assert "--bind" not in RECIPE


def test_a_restart_of_madoguchi_or_nginx_leaves_both_in_one_network():
    for name in ("madoguchi", "nginx"):
        assert COMPOSE["services"][name]["network_mode"] == "service:network"
    assert COMPOSE["services"]["network"]["entrypoint"] == ["sleep", "infinity"]


def test_a_machine_keeps_its_name_through_upgrades():
    assert "MADOGUCHI_HOST" in COMPOSE["services"]["madoguchi"]["environment"]


def test_the_image_has_the_packages_that_the_book_names_for_a_host():
    (listed,) = re.findall(r"^apt-get install (libldap.+)$", (DEPLOY / "OPERATIONS.md").read_text(), re.MULTILINE)
    elsewhere = {"postgresql", "nginx", "libgomp1"}  # in containers of their own, and of engines
    needed = set(listed.split()) - elsewhere
    assert needed <= set(RECIPE.split())


def test_nothing_starts_before_the_schema_is_there():
    waits = COMPOSE["services"]["madoguchi"]["depends_on"]
    assert waits["migrate"] == {"condition": "service_completed_successfully"}
    assert COMPOSE["services"]["migrate"]["command"] == ["migrate", "--no-input"]
