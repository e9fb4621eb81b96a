"""What the service does with a delivery. Returning acks it; what is raised settles it in another way."""

import httpx
from pydantic import ValidationError

from bellhop.amqp.errors import Reject, Retry
from bellhop.amqp.message import Delivery
from bellhop.contracts.base import derived_id
from bellhop.errors import Unavailable
from bellhop.observe.logs import get_logger

from .messages import SmsRequest
from .parts import Sms

log = get_logger(__name__)


async def send(sms: Sms, delivery: Delivery) -> None:
    """Hand one text message to the provider.

    A message may come more than once. So the provider gets an id that follows from the event, and sends it once.
    """
    try:
        request = SmsRequest.read(delivery.body)
    except ValidationError as error:
        raise Reject(f"not an SMS request: {error.error_count()} fields are wrong") from None
    event = delivery.envelope
    headers = {"Idempotency-Key": derived_id(event.owner or "", event.source, event.id)}
    try:
        answer = await sms.http.post(sms.url, json=request.model_dump(), headers=headers)
    except httpx.HTTPError as error:
        raise Unavailable(f"the provider does not answer: {str(error) or type(error).__name__}") from error
    if answer.status_code == 429 or answer.status_code >= 500:
        raise Retry(f"the provider answered {answer.status_code}")
    if not answer.is_success:
        raise Reject(f"the provider refused the message: it answered {answer.status_code}")
