"""Small wheels, for a real pip that has no package index."""

import hashlib
import zipfile
from pathlib import Path


def write_wheel(directory: Path, name: str, files: dict[str, str | bytes]) -> str:
    """Write a wheel of version 1.0 and answer its pin."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            entry = zipfile.ZipInfo(member)
            program = "/scripts/" in member or "/bin/" in member
            entry.external_attr = (0o100755 if program else 0o100644) << 16
            archive.writestr(entry, content)
        record = [f"{member},,{len(content)}" for member, content in files.items()]
        archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]))
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
