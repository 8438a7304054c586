"""What operators do to hosts, and what the host's supervisor makes of it."""

from modelregistry.models import Host
from tests.modelregistry.site import stream
from tests.waiting import until

# RFC 5737's block for documentation: no machine has it.
NOBODYS = "192.0.2.77"


def test_e9_engines_follow_the_address_of_their_host(site):
    site.supervise()
    site.model("first")
    before = site.reaches("ready", "first")
    answer = stream(before, 20)

    # An address that is not here ends nothing, and starts nothing.
    Host.objects.update(address=NOBODYS)
    site.model("second")
    refused = site.reaches("failed", "second")
    assert (refused.cause, refused.restarts, refused.pid) == ("bad-address", 0, None)
    assert NOBODYS in refused.detail
    assert site.replica("first").pid == before.pid

    Host.objects.update(address="127.0.0.2")
    assert site.reaches("draining", "first").pid == before.pid
    assert answer.rest().endswith("[DONE]\n\n")
    assert site.reaches("ready", "second").url.startswith("http://127.0.0.2:")
    until(lambda: site.replica("first").pid not in (None, before.pid))
    assert site.reaches("ready", "first").url.startswith("http://127.0.0.2:")

    # The address as it is: the next supervisor leaves them as they are.
    pids = {site.replica(name).pid for name in ("first", "second")}
    site.processes[-1].terminate()
    site.processes[-1].wait(30)
    site.supervise()
    until(lambda: site.log.read_text().count("adopted") == 2)
    site.model("third")
    site.reaches("ready", "third")
    assert {site.replica(name).pid for name in ("first", "second")} == pids
