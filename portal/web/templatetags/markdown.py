"""`{{ text|markdown }}`: Markdown that people wrote, in a template."""

from django import template
from django.utils.safestring import SafeString

from portal.web.markdown import render_markdown

register = template.Library()


@register.filter
def markdown(text: str) -> SafeString:
    """Return the text as HTML, to be put into an element of the class `prose`."""
    return render_markdown(text)
