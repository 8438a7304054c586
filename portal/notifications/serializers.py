"""Serializers of notices."""

from typing import Any

from rest_framework import serializers

from portal.notifications.models import Notice as Row
from portal.notifications.types import KINDS
from portal.web.rest.strict_fields import CharField


class Notice(serializers.Serializer[Row]):
    """Something that you should know, in the language that the request accepts."""

    id = serializers.IntegerField()
    kind = serializers.ChoiceField(sorted(KINDS))
    tone = serializers.SerializerMethodField(help_text="`fine`, `watch` or `broken`.")
    title = serializers.SerializerMethodField()
    text = serializers.SerializerMethodField()
    facts = serializers.DictField(help_text="The values in the sentences.")
    path = CharField(help_text="Of the page about it, or empty.")
    at = serializers.DateTimeField()
    read_at = serializers.DateTimeField(allow_null=True)

    def get_tone(self, notice: Row) -> str:
        return KINDS[notice.kind].tone

    def get_title(self, notice: Row) -> str:
        return KINDS[notice.kind].title(notice.facts)

    def get_text(self, notice: Row) -> str:
        return KINDS[notice.kind].text(notice.facts)


class NoticeFilter(serializers.Serializer[Any]):
    unread = serializers.BooleanField(required=False, allow_null=True, default=None)
    kind = serializers.ChoiceField(sorted(KINDS), required=False)


class ReadCount(serializers.Serializer[Any]):
    read = serializers.IntegerField(help_text="How many were unread until now.")
