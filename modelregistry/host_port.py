"""HOST:PORT as one text, an IPv6 address in brackets (RFC 3986, 3.2.2). No Django; looks nothing up."""

from ipaddress import AddressValueError, IPv6Address


def bracket_host(host: str) -> str:
    """Return a host as it is written where a colon may follow: an IPv6 address in brackets, all else as it is."""
    return f"[{host}]" if ":" in host else host


def join_host_port(host: str, port: int) -> str:
    return f"{bracket_host(host)}:{port}"


def split_host_port(text: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port. Raises ValueError, also for an IPv6 address without brackets."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        if bracketed:
            host = host[1:-1]
            IPv6Address(host)
    except AddressValueError as error:
        raise ValueError(f"{text!r} has no IPv6 address in its brackets") from error
    if not host or (not bracketed and set(host) & set("[]:")):
        raise ValueError(f"{text!r} is not HOST:PORT, or [ADDRESS]:PORT of an IPv6 address")
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise ValueError(f"{text!r} has no port from 1 to 65535")
    return host, int(port)
