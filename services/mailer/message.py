"""Build the bytes of one mail (RFC 5322, MIME of RFC 2045 to 2047).

`email.message.EmailMessage` takes 0.5 to 1 ms for a mail, which would be the largest cost of sending it. The mails
here have few headers and one or two text parts, so this module builds them itself. The tests parse each result with
the standard library and compare.
"""

import base64
import binascii
import os
import re
from dataclasses import dataclass, field
from urllib.parse import quote

LINE = 78  # RFC 5322, 2.1.1: lines should be no longer
HARD_LINE = 998  # and must be no longer, both without CRLF
ENCODED_WORD = 75  # RFC 2047, 2
FILENAME_PIECE = 60

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HEADER_NAME = re.compile(r"[!-9;-~]+")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")
# Needs no encoding: printable ASCII and tabs, in lines of at most 998 bytes. Possessive, so that it never backtracks.
_SEVEN_BIT = re.compile(rb"(?>[\t -~]{0,998}\n)*+[\t -~]{0,998}")
_HIGH_BYTES = bytes(range(0x80, 0x100))


@dataclass(frozen=True, slots=True)
class Attachment:
    """One file of a mail."""

    filename: str
    content_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail to one recipient, rendered. At least one of `text` and `html` is set."""

    to: str
    subject: str
    message_id: str
    """With its angle brackets."""
    text: str | None = None
    html: str | None = None
    reply_to: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    from_name: str = ""
    to_name: str = ""
    attachments: tuple[Attachment, ...] = ()


def from_header(name: str, address: str) -> bytes:
    """Return the From header line for a display name (may be empty) and an address."""
    return _mailbox("From", name, address)


def build(mail: Mail, from_line: bytes, date: str) -> bytes:
    """Return the bytes of the mail for SMTP: CRLF line ends, 7-bit except for an address that is not ASCII.

    Dots at line beginnings are not doubled yet.

    Raises:
        ValueError: a header would contain a control character. Contracts refuse those; this is a second check.
    """
    lines = [
        from_line,
        _mailbox("To", mail.to_name, mail.to),
        _header("Subject", mail.subject),
        b"Date: " + date.encode(),
        _header("Message-ID", mail.message_id),
    ]
    if mail.reply_to is not None:
        lines.append(_address_header("Reply-To", mail.reply_to))
    lines += [_header(name, value) for name, value in mail.headers.items()]
    lines.append(b"MIME-Version: 1.0")
    body = _body(mail)
    lines += _multipart(b"mixed", body, *map(_file, mail.attachments)) if mail.attachments else body
    lines.append(b"")
    return b"\r\n".join(lines)


def dot_stuffed(message: bytes) -> bytes:
    """Double the dots at line beginnings and add the final one (RFC 5321, 4.5.2). `message` ends with CRLF."""
    if message.startswith(b"."):
        message = b"." + message
    return message.replace(b"\r\n.", b"\r\n..") + b".\r\n"


# Headers


def _header(name: str, value: str) -> bytes:
    _check(name, value)
    line = f"{name}: {value}"
    plain = value.isascii() and "=?" not in value and value == value.strip()
    if plain and len(line) <= LINE:
        return line.encode()
    if plain and _foldable(name, value):
        return _folded(name, value.split(" "))
    return _folded(name, _encoded_words(value, ENCODED_WORD - len(name) - 2))


def _mailbox(header: str, name: str, address: str) -> bytes:
    """Return the header line for a display name (may be empty) and an address (RFC 5322, 3.4)."""
    if not name:
        return _address_header(header, address)
    _check(header, name)
    _check(header, address)
    if not name.isascii() or "=?" in name:
        return _folded(header, [*_encoded_words(name, ENCODED_WORD - len(header) - 2), f"<{address}>"])
    if not _ATOMS.fullmatch(name):
        name = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return _folded(header, [*name.split(" "), f"<{address}>"])


def _address_header(name: str, address: str) -> bytes:
    _check(name, address)
    return f"{name}: {address}".encode()  # not ASCII only where SMTPUTF8 carries it (RFC 6532)


def _check(name: str, value: str) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of a header")
    if _CONTROL.search(value):
        raise ValueError(f"header {name} must not contain control characters")


def _foldable(name: str, value: str) -> bool:
    # A line is folded at a blank; two blanks in a row could leave a line of white space alone, which readers drop.
    words = value.split(" ")
    return all(words) and max(map(len, words)) + len(name) + 2 <= HARD_LINE


def _folded(name: str, words: list[str]) -> bytes:
    lines = [f"{name}:"]
    for word in words:
        # The first word stays beside the name: an empty first line confuses old readers.
        if len(lines[-1]) + 1 + len(word) > LINE and lines != [f"{name}:"]:
            lines.append("")
        lines[-1] += " " + word
    return "\r\n".join(lines).encode()


def _encoded_words(text: str, first_room: int) -> list[str]:
    """Split `text` into RFC 2047 words, none of which splits a character (section 5)."""
    data = text.encode()
    words = []
    room = max(first_room, 40)
    while data:
        size = (room - len("=?utf-8?b??=")) // 4 * 3
        while size < len(data) and data[size] & 0xC0 == 0x80:
            size -= 1
        words.append(f"=?utf-8?b?{base64.b64encode(data[:size]).decode()}?=")
        data = data[size:]
        room = ENCODED_WORD
    return words


# Bodies


def _body(mail: Mail) -> list[bytes]:
    if mail.text is not None and mail.html is not None:
        return _multipart(b"alternative", _part("plain", mail.text), _part("html", mail.html))
    if mail.html is not None:
        return _part("html", mail.html)
    return _part("plain", mail.text or "")


def _part(subtype: str, text: str) -> list[bytes]:
    encoding, body = _transfer(text)
    return [
        b'Content-Type: text/%b; charset="utf-8"' % subtype.encode(),
        b"Content-Transfer-Encoding: " + encoding,
        b"",
        body,
    ]


def _transfer(text: str) -> tuple[bytes, bytes]:
    """Return the transfer encoding that suits `text`, and the encoded text without its last line end."""
    data = text.replace("\r\n", "\n").replace("\r", "\n").encode()
    data = data.removesuffix(b"\n")
    if _SEVEN_BIT.fullmatch(data):
        return b"7bit", data.replace(b"\n", b"\r\n")
    high = len(data) - len(data.translate(None, _HIGH_BYTES))
    if high * 6 <= len(data):  # mostly ASCII: stays readable, and smaller than base64
        return b"quoted-printable", binascii.b2a_qp(data, istext=True).replace(b"\n", b"\r\n")
    encoded = base64.encodebytes(data.replace(b"\n", b"\r\n")).removesuffix(b"\n")
    return b"base64", encoded.replace(b"\n", b"\r\n")


def _file(attachment: Attachment) -> list[bytes]:
    _check("Content-Type", attachment.content_type)
    _check("Content-Disposition", attachment.filename)
    return [
        b"Content-Type: " + attachment.content_type.encode("ascii"),
        b"Content-Transfer-Encoding: base64",
        b"Content-Disposition: attachment;\r\n " + _filename(attachment.filename),
        b"",
        base64.encodebytes(attachment.content).removesuffix(b"\n").replace(b"\n", b"\r\n"),
    ]


def _filename(name: str) -> bytes:
    plain = name.isascii() and not set(name) & set('"\\%') and name == name.strip()
    if plain and len(name) <= LINE - len(' filename=""'):
        return b'filename="%b"' % name.encode()
    # RFC 2231, 4.1: as a whole it may be longer than a line, so it comes in numbered pieces. None of them splits a
    # character: readers decode each by itself.
    pieces = ["utf-8''"]
    for character in name:
        encoded = quote(character, safe="")
        if len(pieces[-1]) + len(encoded) > FILENAME_PIECE:
            pieces.append("")
        pieces[-1] += encoded
    return ";\r\n ".join(f"filename*{number}*={piece}" for number, piece in enumerate(pieces)).encode()


def _multipart(kind: bytes, *parts: list[bytes]) -> list[bytes]:
    # 96 random bits, drawn after the bodies were written: no body can hold them.
    boundary = b"=_" + os.urandom(12).hex().encode()
    lines = [b'Content-Type: multipart/%b; boundary="%b"' % (kind, boundary), b""]
    for part in parts:
        lines += [b"--" + boundary, *part]
    lines.append(b"--" + boundary + b"--")
    return lines
