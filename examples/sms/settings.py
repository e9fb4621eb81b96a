"""The settings of the service, from `BELLHOP_…` variables or secret files."""

from pydantic import Field

from bellhop.catalog import PORTS
from bellhop.settings import ServiceSettings


class SmsSettings(ServiceSettings):
    """What the service needs beyond what all services need."""

    port: int = Field(PORTS["sms"], ge=0, le=65535, description="port that the HTTP face listens on")
    sms_provider_url: str = Field(pattern=r"^https?://", description="where a text message is posted to, as JSON")
