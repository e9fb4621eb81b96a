"""Announcements of mailers: which event types their templates react to."""

from typing import Annotated

from pydantic import Field, StringConstraints

from bellhop.contracts.base import Contract

QUEUE = "gateway.announcements"
TYPE = "mailer.started"


TemplateType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""An event type as the front matter of a template may name it."""


class MailerStarted(Contract):
    """A mailer runs (type `mailer.started`): published when it starts, and every few minutes from then on."""

    reacts_to: Annotated[list[TemplateType], Field(max_length=10_000)]
    """The event types that its templates name."""
