"""python -m portal.frontend: fetches the libraries that pages load, if they are not there."""

import os
import sys

from modelregistry.install.build_cache import CannotFetch
from portal.frontend import cache, fetch


def say(text: str) -> None:
    print(f"→ {text}", flush=True)


if __name__ == "__main__":
    try:
        fetch(cache(os.environ), say)
    except CannotFetch as error:
        sys.exit(str(error))
