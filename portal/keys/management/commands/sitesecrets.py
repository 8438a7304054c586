"""Show whether the secrets of this machine are those of its site, and how far a replacement is."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from portal.keys import site_secrets
from portal.keys.site_secrets import SecretState


class Command(BaseCommand):
    help = (
        "Shows fingerprints of SECRET_KEY and API_KEY_SECRET, here and of the site, and how many keys are still stored"
        " under a former secret: those stop working when it is no longer a fallback. Exits with 1 if this machine has"
        " other secrets than its site."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--adopt",
            action="store_true",
            help="make the secrets of this machine those of the site. For a site that has lost its own: keys under a"
            " lost API_KEY_SECRET never work again",
        )

    def handle(self, *, adopt: bool, **options: Any) -> None:
        if adopt:
            site_secrets.adopt_secrets()
        states = site_secrets.read_states()
        for state in states:
            self.stdout.write(describe(state))
        if not all(state.agrees for state in states):
            raise SystemExit(1)


def describe(state: SecretState) -> str:
    """Return a line about a secret, and one about keys that still need its fallback."""
    lines = [f"{state.name}: {state.own}"]
    if state.accepted:
        lines[0] += f", accepts {', '.join(state.accepted)}"
    if not state.of_site:
        lines[0] += "; the site has none yet"
    elif state.of_site == state.own:
        lines[0] += "; the site's"
    elif state.agrees:
        lines[0] += f"; the site's is {state.of_site}, which is accepted here"
    else:
        lines[0] += f"; the site's is {state.of_site}: ANOTHER ONE"
    if state.keys:
        lines.append(f"  stored under another secret: {state.keys} valid keys, until each is used")
    return "\n".join(lines)
