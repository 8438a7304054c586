"""The house rules as the API shows and takes them."""

from typing import Any

from rest_framework import serializers

from portal.web.markdown import MAX_LENGTH
from portal.web.rest.strict_fields import CharField, KnownFields

MAX_CONTACT = 1000


class HouseRules(serializers.Serializer[Any]):
    """`rules` and `contact` as readers see them, in the language that the request accepts; the others as written."""

    rules = serializers.CharField(help_text="Markdown.")
    contact = serializers.CharField(help_text="Markdown. Empty: the operators.")
    is_default = serializers.BooleanField(help_text="Whether the company has not written its own yet.")
    changed_at = serializers.DateTimeField(allow_null=True)
    edition = serializers.IntegerField(help_text="Counts the changes. A change names the one that it is a change of.")
    rules_ja = serializers.CharField()
    rules_en = serializers.CharField()
    contact_ja = serializers.CharField()
    contact_en = serializers.CharField()


class ChangedHouseRules(KnownFields):
    edition = serializers.IntegerField(min_value=0, max_value=2**31 - 1, help_text="As it was read.")
    rules_ja = CharField(max_length=MAX_LENGTH, required=False, allow_blank=True)
    rules_en = CharField(max_length=MAX_LENGTH, required=False, allow_blank=True)
    contact_ja = CharField(max_length=MAX_CONTACT, required=False, allow_blank=True)
    contact_en = CharField(max_length=MAX_CONTACT, required=False, allow_blank=True)
