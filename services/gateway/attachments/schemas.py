"""What is answered about attachments."""

from typing_extensions import TypedDict

from bellhop.contracts.answers import Timestamp


class AttachmentAnswer(TypedDict):
    """One attachment."""

    id: str
    filename: str
    content_type: str
    size: int
    sha256: str
    expires_at: Timestamp
