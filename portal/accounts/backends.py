"""Sign-in for local accounts: without a directory everybody's, beside one the operators' way in when it is away."""

from django.contrib.auth.backends import ModelBackend

from portal.accounts.models import User


class LocalBackend(ModelBackend):
    def user_can_authenticate(self, user: User | None) -> bool:  # type: ignore[override]
        """Not the directory's people: a password set here would outlive their leaving there."""
        return super().user_can_authenticate(user) and user is not None and user.directory_id is None
