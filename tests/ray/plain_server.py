"""What answers messages on a host in tests of the cluster itself: starts, lists and stops runs, and nothing more."""

import asyncio
import json
from dataclasses import asdict
from typing import Any

from modelregistry.cluster.node_directory import NodeDirectory
from modelregistry.engines.base import INHERITED, INHERITED_PREFIXES, EngineCommand
from modelregistry.process import process
from modelregistry.process.process import Runs


class PlainServer:
    def __init__(self, directory: NodeDirectory) -> None:
        self.runs = Runs(directory.runs)

    async def __call__(self, message: str) -> str:
        asked = json.loads(message)
        return json.dumps(await asyncio.to_thread(getattr(self, asked.pop("do")), **asked))

    def start(self, run_id: str, argv: list[str], env: dict[str, str]) -> dict[str, Any]:
        import os

        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in INHERITED or name.startswith(INHERITED_PREFIXES)
        }
        command = EngineCommand(argv=tuple(argv), env={**inherited, **env})
        run = self.runs.start(run_id, command, label={}, grace=2.0)
        return {"pid": run.engine.pid, "shim": run.shim.pid}

    def list(self) -> dict[str, str]:
        return {run.run_id: process.life_of(run).name for run in self.runs.all()}

    def stop(self, run_id: str) -> bool:
        run = self.runs.find(run_id)
        return run is not None and process.stop(run, grace=2.0)

    def end(self, run_id: str) -> dict[str, Any] | None:
        run = self.runs.find(run_id)
        ended = process.exit_of(run) if run else None
        return asdict(ended) if ended else None
