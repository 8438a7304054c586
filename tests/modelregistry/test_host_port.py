"""HOST:PORT as one text, which Ray, Redis, URLs and operators read."""

import pytest

from modelregistry.host_port import bracket_host, join_host_port, split_host_port

WRITTEN = [
    ("127.0.0.1", 6377, "127.0.0.1:6377"),
    ("gpu-1.example.internal", 1, "gpu-1.example.internal:1"),
    ("::1", 6377, "[::1]:6377"),
    ("fd00::1:2", 65535, "[fd00::1:2]:65535"),
]


@pytest.mark.parametrize(("host", "port", "text"), WRITTEN)
def test_what_was_joined_is_split_again(host, port, text):
    assert join_host_port(host, port) == text
    assert split_host_port(text) == (host, port)
    assert text.startswith(f"{bracket_host(host)}:")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":",
            "gpu-1",
            "gpu-1:",
            ":6377",
            "gpu-1:0",
            "gpu-1:65536",
            "gpu-1:1e3",
            "gpu-1:-1",
            "gpu-1:٣",
            "gpu-1: 1",
        ),
        *(
            "::1:6377",
            "fd00::1",
            "[::1]",
            "[::1]6377",
            "[::1:6377",
            "::1]:6377",
            "[gpu-1]:6377",
            "[127.0.0.1]:1",
            "[]:1",
        ),
    ],
)
def test_what_is_no_host_with_a_port_is_refused(text):
    with pytest.raises(ValueError, match=r"HOST:PORT|port|brackets"):
        split_host_port(text)
