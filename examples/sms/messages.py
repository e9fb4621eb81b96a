"""What the messages of this service hold."""

from typing import Annotated

from pydantic import AfterValidator, Field

from bellhop.contracts.base import Contract, no_nul

PhoneNumber = Annotated[str, Field(pattern=r"^\+[1-9][0-9]{6,14}$")]
"""As in E.164: +4915112345678."""


class SmsRequest(Contract):
    """Type `sms.requested`: one text message to one phone."""

    to: PhoneNumber
    text: Annotated[str, Field(min_length=1, max_length=1600), AfterValidator(no_nul)]
