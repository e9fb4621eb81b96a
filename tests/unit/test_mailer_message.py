"""Every mail we build says to the standard library's parser what it was built from."""

import re
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mailer.message import Attachment, Mail, build, dot_stuffed, from_header

DATE = "Fri, 21 Nov 2025 09:30:00 -0000"
FROM = from_header("Bellhop", "hello@example.com")

# What contracts let through: one line without control characters; a text without NUL and lone surrogates.
characters = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029")
lines = st.text(characters, min_size=1, max_size=998)
ascii_lines = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=998)
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=3000)
long_texts = st.text("abc .=\n", max_size=5000) | st.text("aé漢😀 .\r\n", max_size=3000)


def mail(**changes: object) -> Mail:
    values: dict[str, object] = {
        "to": "ada@example.com",
        "subject": "Hello",
        "message_id": "<1@example.com>",
        "text": "Hello",
    }
    return Mail(**values | changes)  # type: ignore[arg-type]


def parsed(one: Mail, from_line: bytes = FROM) -> EmailMessage:
    content = build(one, from_line, DATE)
    longest = max(map(len, content.split(b"\r\n")))
    assert longest <= 998
    assert b"\n" not in content.replace(b"\r\n", b"")
    assert b"\r" not in content.replace(b"\r\n", b"")
    message = message_from_bytes(content, policy=default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def body(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return unified(payload.decode())


def unified(text: str) -> str:
    """All line ends are CRLF on the wire, and those at the very end belong to the transport."""
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


@given(lines | ascii_lines)
def test_a_subject_comes_back_as_it_was(subject: str) -> None:
    """Folding and encoded words lose nothing, whatever the characters and however long."""
    assert parsed(mail(subject=subject))["Subject"] == subject


@given(st.from_regex(r"X-[A-Za-z][A-Za-z0-9-]{0,60}", fullmatch=True), lines | ascii_lines)
def test_a_header_comes_back_as_it_was(name: str, value: str) -> None:
    """A client's own headers are kept, and none of them becomes a second header."""
    message = parsed(mail(headers={name: value}))
    assert message[name] == value
    assert len(message.keys()) == len({*message.keys()})


@given(texts | long_texts)
def test_a_text_comes_back_as_it_was(text: str) -> None:
    """Whatever transfer encoding is chosen, a plain text decodes to itself."""
    assert body(parsed(mail(text=text)), "plain") == unified(text)


@given(texts | long_texts, texts | long_texts)
def test_both_parts_come_back_as_they_were(text: str, html: str) -> None:
    """Of two parts neither leaks into the other."""
    message = parsed(mail(text=text, html=html))
    assert message.get_content_type() == "multipart/alternative"
    assert (body(message, "plain"), body(message, "html")) == (unified(text), unified(html))


filenames = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029/\\"), min_size=1, max_size=200
).filter(lambda name: name == name.strip())  # readers drop blanks around a name
types = st.sampled_from(["application/pdf", "text/plain", "image/svg+xml", "application/octet-stream"])
files = st.lists(st.builds(Attachment, filenames, types, st.binary(max_size=300)), min_size=1, max_size=3)


@given(files, texts)
def test_attachments_come_back_as_they_were(attachments: list[Attachment], text: str) -> None:
    """Name, type and every byte, behind a body that is what it is without them."""
    message = parsed(mail(text=text, html="<p>Hi</p>", attachments=tuple(attachments)))
    assert message.get_content_type() == "multipart/mixed"
    assert (body(message, "plain"), body(message, "html")) == (unified(text), "<p>Hi</p>")
    found = list(message.iter_attachments())
    assert [one.get_payload(decode=True) for one in found] == [one.content for one in attachments]
    assert [one.get_content_type() for one in found] == [one.content_type for one in attachments]
    assert [one.get_filename() for one in found] == [one.filename for one in attachments]
    assert {one.get_content_disposition() for one in found} == {"attachment"}


@pytest.mark.parametrize(("filename", "content_type"), [("a\r\nb", "text/plain"), ("a", "text/plain\r\nBcc: eve")])
def test_no_line_end_gets_into_the_head_of_an_attachment(filename: str, content_type: str) -> None:
    """What a contract should have refused is refused again at the last gate."""
    with pytest.raises(ValueError, match="control characters"):
        build(mail(attachments=(Attachment(filename, content_type, b""),)), FROM, DATE)


def test_html_alone_is_one_part() -> None:
    """A mail without a text part is no multipart."""
    assert parsed(mail(text=None, html="<p>Hi</p>")).get_content_type() == "text/html"


@given(st.text(characters, min_size=1, max_size=200))
def test_the_sender_keeps_name_and_address(name: str) -> None:
    """A display name with any characters stands before the fixed address, as one mailbox."""
    message = parsed(mail(), from_header(name, "hello@example.com"))
    (sender,) = message["From"].addresses
    assert sender.addr_spec == "hello@example.com"
    # Python 3.11 leaves the blank between two encoded words in a phrase, against RFC 2047, 6.2.
    assert "".join(sender.display_name.split()) == "".join(name.split())


@given(st.text(characters, min_size=1, max_size=200))
def test_the_recipient_keeps_name_and_address(name: str) -> None:
    """The same for whom the mail is to."""
    (recipient,) = parsed(mail(to_name=name))["To"].addresses
    assert recipient.addr_spec == "ada@example.com"
    assert "".join(recipient.display_name.split()) == "".join(name.split())


def test_lines_stay_short_where_the_text_allows_it() -> None:
    """Headers fold before column 78 (RFC 5322, 2.1.1)."""
    content = build(mail(subject="word " * 60 + "end", headers={"X-Ids": "<a@b.c> " * 40 + "<z@b.c>"}), FROM, DATE)
    assert max(map(len, content.split(b"\r\n"))) <= 78


@pytest.mark.parametrize("character", ["\r", "\n", "\x00", "\x0b", "\x7f"])
def test_a_control_character_never_reaches_a_header(character: str) -> None:
    """What a contract should have refused is refused again at the last gate."""
    with pytest.raises(ValueError, match="control characters"):
        build(mail(subject=f"a{character}Bcc: eve@example.com"), FROM, DATE)


@given(long_texts)
def test_the_final_dot_is_the_only_one(text: str) -> None:
    """A line that is one dot cannot end the mail early (RFC 5321, 4.5.2)."""
    content = build(mail(text=text), FROM, DATE)
    wire = dot_stuffed(content)
    assert wire.endswith(b"\r\n.\r\n")
    assert wire.find(b"\r\n.\r\n") == len(wire) - 5
    assert re.sub(rb"(?m)^\.", b"", wire.removesuffix(b".\r\n")) == content
