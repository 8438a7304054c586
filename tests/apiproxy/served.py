"""A model for tests that need one as the catalogue holds it."""

from apiproxy.dataplane.catalogue import Model, Timeouts

SERVED = Model(
    id=1,
    name="m",
    task="chat",
    created=0,
    context=None,
    external=False,
    stops_unary=True,
    tenants=None,
    loading_on=frozenset(),
    retires=None,
    timeouts=Timeouts(connect=1, first_byte=1, idle=1, total=1),
    replicas=(),
)
