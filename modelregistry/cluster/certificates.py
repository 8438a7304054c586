"""The authority of one cluster, and the certificates and token of its hosts. Needs `cryptography`, which Ray's has.

Each machine shows its certificate to the others, and takes only those that this authority signed. The authority's key
stays where `create_authority` put it: its holder can add machines.

`python -m modelregistry.cluster.certificates AUTHORITY NAME ADDRESS INTO` creates what is missing of an authority, and
issues what a host of this name and address needs. It prints the version of its Python, which is the cluster's.
"""

import ipaddress
import os
import platform
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from modelregistry.cluster.access import AUTHORITY, CERTIFICATE, KEY, TOKEN, VALID_BEFORE

AUTHORITY_KEY = "ca.key"
AUTHORITY_YEARS = 20
YEARS = 5  # of a host: Ray reads its certificate at its start only


def create_authority(directory: Path) -> None:
    """Create a token and an authority, unless they are there."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (directory / TOKEN).exists():
        write_private(directory / TOKEN, secrets.token_urlsafe(32).encode())
    if (directory / AUTHORITY_KEY).exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Madoguchi cluster")])
    certificate = (
        _begin(name, name, key, years=AUTHORITY_YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(directory / AUTHORITY, certificate.public_bytes(serialization.Encoding.PEM))
    write_private(directory / AUTHORITY_KEY, _pem(key))


def issue(authority: Path, host: str, addresses: Sequence[str], into: Path) -> None:
    """Write the token, the authority's certificate, and a new certificate of a host, valid for these addresses."""
    signer = serialization.load_pem_private_key((authority / AUTHORITY_KEY).read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    root = x509.load_pem_x509_certificate((authority / AUTHORITY).read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    # Ray's processes on one machine reach each other by these as well.
    names = dict.fromkeys([*addresses, "127.0.0.1", "localhost"])
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _begin(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])]), root.subject, key, years=YEARS)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(into / TOKEN, (authority / TOKEN).read_bytes())
    write_private(into / AUTHORITY, (authority / AUTHORITY).read_bytes())
    write_private(into / CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))
    write_private(into / KEY, _pem(key))


def read_end(path: Path) -> float | None:
    """Return when a certificate ends, in Unix seconds; None: it cannot be read."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return None


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only this user can read, completely or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.replace(path)


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, years: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=VALID_BEFORE))
        .not_valid_after(now + timedelta(days=365 * years))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.encode("idna").decode() if not name.isascii() else name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def main(authority: Path, name: str, address: str, into: Path) -> int:
    os.umask(0o077)
    create_authority(authority)
    issue(authority, name, [address], into)
    print(platform.python_version())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])))
