"""The type of an attachment, with its parameters."""

import pytest

from bellhop.contracts.media_types import content_type


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("application/pdf", "application/pdf"),
        ("text/calendar; method=REQUEST; charset=UTF-8", "text/calendar; method=REQUEST; charset=UTF-8"),
        ("text/csv;charset=utf-8;", "text/csv; charset=utf-8"),
        ('text/plain ; name="a \\"b\\";c"', 'text/plain; name="a \\"b\\";c"'),
    ],
)
def test_parameters_are_kept(given: str, kept: str) -> None:
    """Written in one way; and what was written is read again."""
    assert content_type(given) == content_type(kept) == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "text/",
        "multipart/mixed; boundary=x",
        "Message/rfc822",
        "text/plain; charset",
        "text/plain; charset=a; Charset=b",
        'text/plain; name="open',
        'text/plain; name="a\r\nBcc: eve@example.com"',
        "text/plain; name=ü",
        "text/plain, text/html",
        f"text/plain; name={'x' * 127}",
    ],
)
def test_what_is_no_type_is_refused(text: str) -> None:
    """It becomes a header."""
    with pytest.raises(ValueError):
        content_type(text)
