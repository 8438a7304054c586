"""Announcements as the API shows and takes them."""

from typing import Any

from rest_framework import serializers

from modelregistry.one_line import check_one_line
from portal.news import models as rows
from portal.news.announcements import check_year
from portal.web.markdown import MAX_LENGTH
from portal.web.rest.strict_fields import CharField, ChoiceField, DateTimeField, KnownFields

MAX_TITLE = 120
MOST_TENANTS = 500


class Announcement(serializers.Serializer[rows.Announcement]):
    """News or maintenance. A text that is empty in one language is shown in the other one."""

    id = serializers.IntegerField()
    level = serializers.ChoiceField(rows.Announcement.Level.choices)
    title_ja = serializers.CharField()
    title_en = serializers.CharField()
    text_ja = serializers.CharField(help_text="Markdown.")
    text_en = serializers.CharField(help_text="Markdown.")
    begins_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    days_ahead = serializers.IntegerField(help_text="Its banner is shown from so many days before it begins.")
    is_current = serializers.BooleanField(help_text="Whether its banner is shown now.")
    tenants = serializers.ListField(
        child=serializers.CharField(),
        allow_null=True,
        source="tenant_slugs",
        help_text="Short names of the tenants that it is for; empty: everyone. Null unless you are an operator.",
    )


class AnnouncementFilter(serializers.Serializer[Any]):
    level = serializers.ChoiceField(rows.Announcement.Level.choices, required=False)
    current = serializers.BooleanField(
        required=False, allow_null=True, default=None, help_text="True: only those whose banner is shown now."
    )


class NewAnnouncement(KnownFields):
    """One of the two titles is enough. Times need their offset, such as `2026-12-01T09:00:00+09:00`."""

    level = ChoiceField(rows.Announcement.Level.choices, required=False, default=rows.Announcement.Level.INFO)
    title_ja = CharField(
        max_length=MAX_TITLE, required=False, default="", allow_blank=True, validators=[check_one_line]
    )
    title_en = CharField(
        max_length=MAX_TITLE, required=False, default="", allow_blank=True, validators=[check_one_line]
    )
    text_ja = CharField(max_length=MAX_LENGTH, required=False, default="", allow_blank=True, help_text="Markdown.")
    text_en = CharField(max_length=MAX_LENGTH, required=False, default="", allow_blank=True, help_text="Markdown.")
    begins_at = DateTimeField(validators=[check_year])
    ends_at = DateTimeField(validators=[check_year], help_text="For news: until when it is shown.")
    days_ahead = serializers.IntegerField(min_value=0, max_value=rows.MOST_DAYS_AHEAD, required=False, default=0)
    tenants = serializers.ListField(
        child=CharField(max_length=50),
        max_length=MOST_TENANTS,
        required=False,
        default=list,
        help_text="Short names. Empty: everyone.",
    )
