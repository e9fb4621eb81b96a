"""Mail templates over HTTP: the mailer answers, and the gateway forwards."""

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from bellhop.contracts.base import Contract, Data


class PreviewRequest(Contract):
    """`POST /v1/templates/{name}/preview`: what to fill the template with."""

    data: Data


class TemplateAnswer(TypedDict):
    """One template."""

    name: str
    on: Annotated[list[str], Field(description="event types that send it")]
    required: Annotated[list[str], Field(description="names that `data` must have")]


class TemplatesAnswer(TypedDict):
    """All templates."""

    templates: list[TemplateAnswer]


class PreviewAnswer(TypedDict):
    """What a template makes of some data."""

    subject: str
    text: str | None
    html: str | None
