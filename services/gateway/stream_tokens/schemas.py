"""What is answered to a request for a stream token."""

from typing_extensions import TypedDict


class StreamTokenAnswer(TypedDict):
    """A token, and where to follow its channels."""

    token: str
    url: str
