"""Heads of the columns by which a table can be sorted."""

from django import template
from django.http import HttpRequest
from django.template import Context
from django.utils.html import format_html
from django.utils.safestring import SafeString

from portal.web.sorting import column_of, is_turned

register = template.Library()


@register.simple_tag(takes_context=True)
def sort_head(
    context: Context, column: str, label: str, current: str, *, direction: str = "ascending", by: str = "sort"
) -> SafeString:
    """Return the head of a column: a link that sorts by it, marked where the table is sorted so (`current`).

    Pressed again, it turns the direction. `current` "": the table is not to be sorted, as the first lines of a list.
    `by`: the parameter of the address, another one for each table of a page. Numbers are sorted "descending" and are
    right-aligned, as their column is; times are not, so they have "latest" for the same order.
    """
    if not current:
        return format_html('<th scope="col">{}</th>', label)
    request: HttpRequest = context["request"]
    query = request.GET.copy()
    query.pop("page", None)
    query[by] = f"-{column}" if column == current else column
    numeric = SafeString(' class="num"') if direction == "descending" else ""
    rises = (direction == "ascending") != is_turned(current)
    marked = (
        format_html(' aria-sort="{}"', "ascending" if rises else "descending") if column == column_of(current) else ""
    )
    return format_html(
        '<th scope="col"{}{}><a class="sort" href="?{}">{}</a></th>', numeric, marked, query.urlencode(), label
    )
