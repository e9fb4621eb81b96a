"""One way to write an address, so that one person is one row and a suppression holds however an address is spelt."""

import unicodedata
from typing import Annotated

import idna
from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, StringConstraints

from bellhop.contracts.base import derived_id
from bellhop.contracts.mail import address
from bellhop.web.problems import invalid


def canonical(email: str) -> str:
    """Return an address in lower case with its domain in ASCII (IDNA 2008, after the mapping of UTS 46).

    The part before the @ could be case-sensitive (RFC 5321, 2.4). No mailbox that is in use is, and two mails to one
    person are worse than a theory.
    """
    if email.isascii():
        return email.lower()
    local, _, domain = email.rpartition("@")
    try:
        domain = idna.encode(domain, uts46=True).decode()
    except idna.IDNAError:
        domain = domain.lower()
    return f"{unicodedata.normalize('NFC', local).lower()}@{domain}"


def checked(email: str) -> str:
    """Return the canonical form of an address that mail can go to; raise ValueError with a sentence."""
    address(email)
    try:
        found = validate_email(email, check_deliverability=False)
    except EmailNotValidError as error:
        raise ValueError(f"must be an address that mail can go to: {error}") from None
    return canonical(found.normalized)


def check_domains(**addresses: str | None) -> None:
    """Raise Problem 422 that names each field whose international domain DNS could not have (IDNA 2008).

    The mailer would find out, too, but only after the client was told that all is well.
    """
    wrong = []
    for field, email in addresses.items():
        if email is None or email.isascii():
            continue
        try:
            idna.encode(email.rpartition("@")[2], uts46=True)
        except idna.IDNAError as error:
            wrong.append({"loc": ("body", field), "msg": f"must have a domain that DNS can hold: {error}"})
    if wrong:
        raise invalid(wrong)


def subscriber_id(email: str) -> str:
    """Return the id that follows from a canonical address: a link in an old mail still means the same person."""
    return derived_id("subscriber", email)


Email = Annotated[str, StringConstraints(max_length=320), AfterValidator(checked)]
