"""What is in a bundle and under which licence: a bill of materials (CycloneDX 1.6, JSON) and the licences' texts.

Written here: the locks hold all of it already, so a library would only rename the fields.
"""

import base64
import email
import email.message
import hashlib
import json
import re
import uuid
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.release.parts import read_lock

LICENCE = re.compile(r"(^|/)(licen[cs]e|copying|notice|authors)[^/]*$", re.IGNORECASE)
Component = dict[str, Any]


def write_bill(made: Path, *, version: str, commit: str, epoch: int) -> None:
    """Write sbom.json of the directory's wheels and of what package-lock.json lists for browsers."""
    components = [describe_wheel(path) for path in sorted((made / "wheels").glob("*.whl"))]
    components += [describe_npm(name, row) for name, row in sorted(read_lock(made / "package-lock.json").items())]
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([version, commit, components]))}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).isoformat(),
            "component": {
                "type": "application",
                "bom-ref": f"madoguchi@{version}",
                "name": "madoguchi",
                "version": version,
                "properties": [{"name": "madoguchi:commit", "value": commit}],
            },
        },
        "components": components,
    }
    (made / "sbom.json").write_text(json.dumps(bill, indent=1, ensure_ascii=False) + "\n")


def describe_wheel(path: Path) -> Component:
    with zipfile.ZipFile(path) as wheel:
        metadata = read_metadata(wheel)
    name, version = re.sub(r"[-_.]+", "-", metadata["Name"]).lower(), metadata["Version"]
    return {
        "type": "library",
        "bom-ref": (purl := f"pkg:pypi/{name}@{version}"),
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
        **licences(metadata),
    }


def describe_npm(name: str, row: dict[str, str]) -> Component:
    """Return the component of a package of npm, whose lock has its sum in base64."""
    algorithm, _, content = row["integrity"].partition("-")
    quoted = name.replace("@", "%40")
    return {
        "type": "library",
        "bom-ref": (purl := f"pkg:npm/{quoted}@{row['version']}"),
        "name": name,
        "version": row["version"],
        "purl": purl,
        "hashes": [{"alg": algorithm.upper().replace("SHA", "SHA-"), "content": base64.b64decode(content).hex()}],
        **({"licenses": [{"expression": row["license"]}]} if row.get("license") else {}),
    }


def read_metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    name = next(name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
    return email.message_from_bytes(wheel.read(name))


def licences(metadata: email.message.Message) -> dict[str, Any]:
    """Return what a wheel says of its licence: an SPDX expression, else the first line that is there, else nothing."""
    if expression := metadata["License-Expression"]:
        return {"licenses": [{"expression": expression}]}
    classified = [row.split(" :: ")[-1] for row in metadata.get_all("Classifier", []) if row.startswith("License ::")]
    stated = str(metadata["License"] or "").strip().splitlines()
    names = classified or [line for line in stated[:1] if line != "UNKNOWN"]
    return {"licenses": [{"license": {"name": name}} for name in names]} if names else {}


def write_licences(made: Path, packages: Path) -> None:
    """Write the texts that wheels bring, and those of the packages of npm below `packages`, into licences/."""
    for path in sorted((made / "wheels").glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            for name in licence_files(wheel.namelist()):
                write_text(made / "licences" / path.name.split("-")[0] / Path(name).name, wheel.read(name))
    for name in read_lock(made / "package-lock.json"):
        for path in sorted((packages / name).iterdir()):
            if LICENCE.search(path.name) and path.is_file():
                write_text(made / "licences" / name.replace("/", "-") / path.name, path.read_bytes())


def licence_files(names: list[str]) -> Iterator[str]:
    return (name for name in names if ".dist-info/" in name and LICENCE.search(name))


def write_text(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
