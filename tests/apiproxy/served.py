"""A model and a key for tests that need them as the catalogue holds them."""

from apiproxy.dataplane.catalogue import Key, Model, Timeouts

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

KEY = Key(
    id=1,
    tenant=1,
    user=1,
    language="en",
    expires=None,
    models=None,
    limits=(),
    networks=(),
    batch=False,
)
