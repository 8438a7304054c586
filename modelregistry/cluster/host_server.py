"""What answers a controller's messages on a host: its `HostSurface`, as for a machine alone, and its `FileSurface`."""

from collections.abc import Awaitable, Callable
from functools import partial

from modelregistry.cluster.access import tls_context
from modelregistry.cluster.node_directory import NodeDirectory
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.local import LocalHost
from modelregistry.hostside.remote import HostServer
from modelregistry.transfer.local import FileConfig, LocalFiles
from modelregistry.transfer.remote import FILE_METHODS


def make_server(directory: NodeDirectory) -> Callable[[str], Awaitable[str]]:
    """Return it; named to agents as `modelregistry.cluster.host_server:make_server`."""
    first, last = directory.ports
    config = HostConfig(
        runs=directory.runs,
        cache=directory.engines,
        commands=directory.commands,
        ports=range(first, last + 1),
        directories=(directory.model_files,),
    )
    files = FileConfig(
        models=directory.model_files,
        state=directory.path,
        address=directory.address,
        make_server=partial(tls_context, directory.secrets, server=True),
        make_client=partial(tls_context, directory.secrets, server=False),
    )
    server = HostServer(LocalHost(config), (LocalFiles(files), FILE_METHODS))

    async def serve(message: str) -> str:
        answer = await server.answer(message.encode("utf-8", "surrogatepass"))
        return answer.decode("utf-8", "surrogatepass")

    return serve
