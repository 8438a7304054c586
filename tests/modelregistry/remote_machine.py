"""python -m tests.modelregistry.remote_machine PORT VAR: a machine that a supervisor reaches by TCP only.

It refuses to import Django. Files in VAR make trouble with the next launch, once: "lose-launch" carries it out and
never answers; "delay-launch" becomes "delayed-launch", and the launch is carried out when that file is gone, with its
answer in "late-answer", as the supervisor no longer waits for it. As long as there is "fault-METHOD", each such request
is answered with a fault, as of a disk that fails, and as long as there is "answer-METHOD", with what that contains.
"""

import asyncio
import importlib.abc
import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class NoDjango(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] in ("django", "portal", "apiproxy"):
            raise ImportError(f"a host has no {name}")
        return None


sys.meta_path.insert(0, NoDjango())

from modelregistry.hostside.launching import HostConfig  # noqa: E402
from modelregistry.hostside.local import LocalHost  # noqa: E402
from modelregistry.hostside.remote import HostServer  # noqa: E402
from tests.waiting import eventually  # noqa: E402


class TroubledServer(HostServer):
    def __init__(self, surface: LocalHost, var: Path) -> None:
        super().__init__(surface)
        self.var = var

    async def answer(self, request: bytes) -> bytes:
        method = json.loads(request)["method"]
        if (self.var / f"fault-{method}").exists():
            (self.var / f"met-{method}").touch()
            return b'{"fault": "OSError: [Errno 5] Input/output error"}'
        if (self.var / f"answer-{method}").exists():
            return (self.var / f"answer-{method}").read_bytes()
        if b'"method":"launch"' not in request:
            return await super().answer(request)
        if (self.var / "lose-launch").exists():
            (self.var / "lose-launch").unlink()
            await super().answer(request)
            await asyncio.Event().wait()
        if (self.var / "delay-launch").exists():
            (self.var / "delay-launch").rename(self.var / "delayed-launch")
            await eventually(lambda: not (self.var / "delayed-launch").exists())
            answer = await super().answer(request)
            (self.var / "late-answer.part").write_bytes(answer)
            (self.var / "late-answer.part").rename(self.var / "late-answer")
            return answer
        return await super().answer(request)


async def serve(port: int, var: Path) -> None:
    variables = {"llama-server": "LLAMA_SERVER_COMMAND", "vllm": "VLLM_COMMAND"}
    commands = {launcher: os.environ[name] for launcher, name in variables.items() if name in os.environ}
    config = HostConfig(runs=var / "run" / "engines", cache=var / "cache", commands=commands, ports=range(18100, 19000))
    server = TroubledServer(LocalHost(config), var)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await server.answer(await reader.read()))
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", port)
    print("listening", flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
