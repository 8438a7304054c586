"""What answers a controller's messages on a host: its `HostSurface`, as a supervisor of one machine has it."""

from collections.abc import Awaitable, Callable

from modelregistry.cluster.host_home import HostHome
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.local import LocalHost
from modelregistry.hostside.remote import HostServer


def make_server(home: HostHome) -> Callable[[str], Awaitable[str]]:
    """Return it; named to agents as `modelregistry.cluster.host_server:make_server`."""
    first, last = home.ports
    config = HostConfig(runs=home.runs, cache=home.engines, commands=home.commands, ports=range(first, last + 1))
    server = HostServer(LocalHost(config))

    async def serve(message: str) -> str:
        answer = await server.answer(message.encode("utf-8", "surrogatepass"))
        return answer.decode("utf-8", "surrogatepass")

    return serve
