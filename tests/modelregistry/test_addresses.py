import pytest
from django.core.exceptions import ValidationError

from modelregistry import addresses
from modelregistry.hostside import own_address
from modelregistry.hostside.run_metadata import RunMetadata

# RFC 5737's block for documentation: no machine has it.
NOBODYS = "192.0.2.77"


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "::1", "fd00::12", "gpu-1", "gpu1.example.internal", "1a"]
)
def test_an_address_or_a_name_may_be_given(address):
    addresses.validate(address)


@pytest.mark.parametrize(
    "address",
    *[
        [
            "",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "10.0.0",
            "10.0.0.1:80",
            "http://gpu1",
            "gpu 1",
            "-x",
            "gpu_1",
            "[::1]",
            "fe80::1%eth0",
            "a..b",
            "::ffff:0.0.0.0",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
            "64:ff9b::a00:1",
            "255.255.255.255",
            "240.0.0.1",
            "0.1.2.3",
            "0x7f000001",
            "0x7f.1",
            "gpu.1",
            "gpu.0x1",
        ]
    ],
)
def test_what_no_gateway_can_reach_may_not(address):
    with pytest.raises(ValidationError):
        addresses.validate(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_this_machine_has_its_own_addresses(address):
    assert own_address.find_fault(address) is None


@pytest.mark.parametrize("address", [NOBODYS, "no-such-host.invalid", "a" * 64])
def test_e9_an_address_that_is_not_here_is_reported_with_its_name(address):
    fault = own_address.find_fault(address)
    assert fault
    assert (fault.code.startswith("address-"), fault.address) == (True, address)
    assert address in str(fault)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://10.0.0.1:18100", "10.0.0.1"),
        ("http://[fd00::1]:18100", "fd00::1"),
        ("http://gpu1:18100", "gpu1"),
    ],
)
def test_e9_an_engine_of_an_earlier_release_shows_where_it_listens(url, address):
    """Else an upgrade would restart all engines, or none when the address is changed."""
    label = RunMetadata(
        model=1, replica=0, name="m", task="chat", fingerprint="f", launcher="", slots=None, port=1, url=url, api_key=""
    )
    assert label.address == address
