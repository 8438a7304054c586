"""Use cases, made in one line each."""

from typing import Any

from portal.accounts.models import Tenant, User
from portal.use_cases import publishing
from portal.use_cases.content import TextContent, UseCaseContent
from portal.use_cases.models import UseCase
from portal.use_cases.variables import Variable

MAIL = Variable(name="mail", label="The mail", kind="text", example="When do you open?")


def text_content(language: str = "en", **more: Any) -> TextContent:
    """Return the texts of a case with one field, `mail`."""
    fields = {
        **{"title": "Reply to a mail", "summary": "A polite reply.", "prompt": "Answer politely:\n{{mail}}"},
        "variables": (MAIL,),
        **more,
    }
    return TextContent(language=language, **fields)


def case_content(*texts: TextContent, **more: Any) -> UseCaseContent:
    fields = {"kind": "write", "departments": ("sales", "support"), **more}
    return UseCaseContent(texts=texts or (text_content(),), **fields)


def use_case(
    author: User, tenant: Tenant | None, *texts: TextContent, publisher: User | None = None, **more: Any
) -> UseCase:
    """Return a case that this person has proposed, published if there is a publisher. `more` as UseCaseContent."""
    case = publishing.create_case(author, tenant, case_content(*texts, **more)).use_case
    publishing.propose(author, case)
    if publisher:
        publishing.publish(publisher, case)
    case.refresh_from_db()
    return case
