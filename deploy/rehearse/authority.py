"""A company's own certificate authority, by openssl, and certificates of it."""

from pathlib import Path

from deploy.release.steps import run


class Authority:
    """Keeps its key and all certificates in one directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(mode=0o700)
        self.certificate = place / "company.crt"
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", place / "company.key")
        run("openssl", "req", "-x509", *key, "-subj", "/CN=Rehearsal", "-days", "30", "-out", self.certificate)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the certificate and the key of a host with this name."""
        key, request, certificate = (self.place / f"{name}.{end}" for end in ("key", "csr", "pem"))
        new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)
        run("openssl", "req", *new, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-out", request)
        signer = ("-CA", self.certificate, "-CAkey", self.place / "company.key", "-CAcreateserial")
        run(
            "openssl",
            "x509",
            "-req",
            "-in",
            request,
            *signer,
            "-days",
            "30",
            "-copy_extensions",
            "copy",
            "-out",
            certificate,
        )
        return certificate, key
