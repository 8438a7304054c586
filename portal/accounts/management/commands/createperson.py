"""Create a local account and print its password, once."""

import secrets
import sys
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from portal.accounts import directory_users
from portal.accounts.models import Membership, User


class Command(BaseCommand):
    help = "Creates a local account, and its tenant if need be, and prints its password unless that came from stdin."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username")
        parser.add_argument("--tenant", metavar="T", help="short name of the tenant; created if it does not exist")
        parser.add_argument("--admin", action="store_true", help="tenant admin, not only member")
        parser.add_argument("--operator", action="store_true", help="runs this server: sees and changes everything")
        parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")

    def handle(
        self, *, username: str, tenant: str | None, admin: bool, operator: bool, password_stdin: bool, **options: Any
    ) -> None:
        if admin and not tenant:
            raise CommandError("--admin needs --tenant: of which tenant?")
        if User.objects.filter(username__iexact=username).exists():
            raise CommandError(f"There is a user {username} already.")
        password = sys.stdin.readline().rstrip("\r\n") if password_stdin else secrets.token_urlsafe(15)
        role = Membership.Role.ADMIN if admin else Membership.Role.MEMBER
        try:
            validate_password(password, User(username=username))
            directory_users.ensure_person(
                username, password=password, tenant_slug=tenant or "", role=role, is_operator=operator
            )
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        if not password_stdin:
            self.stdout.write(password)
