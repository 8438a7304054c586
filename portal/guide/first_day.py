"""Who is still before their first answer, and so is led to the page for the first day at sign-in."""

from portal.accounts.models import User
from portal.accounts.permissions import own_tenants
from portal.guide.models import FirstDayDone
from portal.usage.records import days_of_user


def is_before_first_answer(user: User) -> bool:
    """Return whether the person could ask a model, and none has answered a call of theirs. Two queries at most."""
    return own_tenants(user).exists() and not days_of_user(user).exists()


def needs_first_day(user: User) -> bool:
    """Return whether sign-in leads to the page. Three queries at most."""
    return not FirstDayDone.objects.filter(user=user).exists() and is_before_first_answer(user)


def finish_first_day(user: User) -> None:
    """Remember that the person has seen enough of the page; a repetition changes nothing."""
    FirstDayDone.objects.get_or_create(user=user)
