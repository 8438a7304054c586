"""Sign-in for local accounts: all accounts without a directory; with one, the operators' way in while it is down."""

from django.contrib.auth.backends import ModelBackend

from portal.accounts.models import User


class LocalBackend(ModelBackend):
    def user_can_authenticate(self, user: User | None) -> bool:  # type: ignore[override]
        """Refuse people of the directory: a password set here would still work after they have left there."""
        return super().user_can_authenticate(user) and user is not None and user.directory_id is None
