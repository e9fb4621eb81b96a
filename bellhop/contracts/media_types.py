"""The type of a file, as it stands in `Content-Type` (RFC 2045, 5.1)."""

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

MAX_CONTENT_TYPE = 127
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(r"([A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*)/([A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*)")
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*(?:({_WORD})=(?:({_WORD})|"((?:[ !#-\[\]-~]|\\[ -~])*)"))?')


def content_type(text: str) -> str:
    """Return a media type with its parameters (RFC 2045, 5.1), each written as `; name=value`.

    They belong to the file: without `charset` a text is read wrongly, without `method` a calendar shows no invitation.

    Raises:
        ValueError: it is none; or one that is built of parts (RFC 2046, 5), because an attachment goes out in base64.
    """
    text = text.strip(" \t")
    kind = _TYPE.match(text)
    if kind is None:
        raise ValueError("must be the type of a file, like application/pdf or text/csv; charset=utf-8")
    if kind[1].lower() in ("multipart", "message"):
        raise ValueError("must be the type of a file, not multipart/… or message/…")
    written, names, end = kind[0], set[str](), kind.end()
    while end < len(text):
        parameter = _PARAMETER.match(text, end)
        if parameter is None:
            raise ValueError(
                "must have parameters like ; charset=utf-8, with quotes around a value of other characters"
            )
        end = parameter.end()
        name, token, quoted = parameter[1], parameter[2], parameter[3]
        if name is None:
            continue
        if name.lower() in names:
            raise ValueError(f"must have the parameter {name} only once")
        names.add(name.lower())
        written += f"; {name}={token}" if token is not None else f'; {name}="{quoted}"'
    if len(written) > MAX_CONTENT_TYPE:
        raise ValueError(f"must have at most {MAX_CONTENT_TYPE} characters with its parameters")
    return written


ContentType = Annotated[str, StringConstraints(max_length=998), AfterValidator(content_type)]
