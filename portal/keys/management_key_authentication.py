"""Authenticate API requests by management key (`Authorization: Bearer mdm_…`); those without one by their session.

Apart from the views, as Django REST framework imports this while it is being imported itself. A browser never sends a
key on its own, so only sessions need a token against forged requests.
"""

from django.utils.translation import gettext as _
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from portal.accounts.models import User
from portal.keys import management_key_throttle, management_keys, secret
from portal.keys.models import ManagementKey
from portal.web.rest.throttling import TooManyRequests


class WithManagementKey(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[User, ManagementKey] | None:
        """Return the person and the key; None without such a header.

        Raises AuthenticationFailed, or TooManyRequests after too many wrong keys.
        """
        word, _space, text = get_authorization_header(request).decode("latin-1").partition(" ")
        if word.lower() != "bearer":
            return None
        key = management_keys.find_management_key(text.strip())
        if key is not None:
            return key.user, key
        if wait := management_key_throttle.count_wrong_key(request._request):
            sentence = _("Too many requests with wrong keys. Try again in %(seconds)d seconds.") % {"seconds": wait}
            raise TooManyRequests(wait, sentence)
        if text.startswith(secret.PREFIX):
            raise AuthenticationFailed(_("This is an API key for models. A management key (mdm_…) is needed here."))
        raise AuthenticationFailed(_("This management key is unknown, expired or revoked."))

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="Madoguchi"'
