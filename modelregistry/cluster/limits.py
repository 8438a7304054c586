"""How long a controller waits for its cluster, in seconds. A pending actor of Ray's would wait for ever."""

NODES = 5.0
CALL = 5.0  # a call takes 3 to 4 ms
BOOKING = 5.0  # a placement group is asked for in a few ms
OPEN = 30.0  # an actor starts in 0.6 to 1.0 s, on a host that loads a model later
LONGEST = 600.0  # for a message; `RemoteHost` has the limit of each
START = 30.0  # until a driver is in the cluster; usually 1 s
PING, PING_EVERY = 3.0, 2.0  # for the driver alone, which answers in a millisecond
DRIVER = 2.0  # beyond its limit a driver's answer may take to arrive
PAUSES = (0.2, 1.0, 2.0, 5.0)  # before a driver is started again, after one that was in the cluster, and after failures
CONCURRENCY = 100  # calls of one agent that Ray lets run at a time; others wait
LONGEST_LINE = 64 * 1024 * 1024  # bytes of a message

# How long an agent may be silent, while its node is alive, until the driver is replaced: longer after each time, as a
# host whose agent hangs must not cost the others their driver again and again.
PATIENCE = (8.0, 30.0, 120.0, 600.0)
SETTLED = 900.0  # seconds that a driver lived, after which patience begins again
