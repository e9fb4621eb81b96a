"""Addresses: one check and one canonical form for all routes.

Every route must accept the same addresses: an address that mail can be sent to can also be suppressed, subscribed,
looked up and erased.

Local parts are dot-atoms (RFC 5322, 3.2.3). `ada..b@…` and `ada.@…` are refused everywhere, although some providers
gave such addresses out: on the wire they would need quotes (RFC 5321, 4.1.2), which many servers refuse.
"""

import re
import unicodedata
from typing import Annotated

import idna
from pydantic import AfterValidator, StringConstraints

from bellhop.contracts.base import one_line

_SPECIAL = re.compile(r'[ <>,;:"()\[\]\\]')
# RFC 1123, 2.1, and the underscore, which is in use as well.
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})+")

# Their users can put dots anywhere in the local part; both names are one provider.
_DOTS_IGNORED = {"gmail.com": "gmail.com", "googlemail.com": "gmail.com"}


def address(text: str) -> str:
    """Return `text` if it is one bare `local@domain` (RFC 5321 addr-spec, no display name, no address literal).

    Raises:
        ValueError: it is not one; the text is a sentence for the client.
    """
    one_line(text)
    local, at, domain = text.rpartition("@")
    if not at or not local or not domain:
        raise ValueError("must be one address like ada@example.com")
    if _SPECIAL.search(text) or "@" in local:
        raise ValueError("must be a bare address like ada@example.com, without name, quotes or brackets")
    if local.startswith(".") or local.endswith(".") or ".." in local:
        raise ValueError("must not have a dot at the beginning or end of the part before the @, or two dots in a row")
    if not text.isprintable():
        raise ValueError("must not contain blanks or invisible characters")
    ascii_domain = domain_label(domain)
    if "." not in ascii_domain and ascii_domain != "localhost":
        raise ValueError(f"must have a domain with a dot, not {domain!r}")
    if "." in ascii_domain and not _DOMAIN.fullmatch(ascii_domain):
        raise ValueError(f"must have a domain of letters, digits and hyphens between its dots, not {domain!r}")
    if ascii_domain.rpartition(".")[2].isdigit():
        raise ValueError(f"must have the name of a domain behind the @, not an IP address like {domain!r}")
    if len(local.encode()) > 64 or len(ascii_domain) > 253:
        raise ValueError("must have at most 64 bytes before the @ and 253 after it")
    return text


def domain_label(domain: str) -> str:
    """Return a domain as DNS has it: in lower case, in A-labels (IDNA 2008 after the mapping of UTS 46).

    Raises:
        ValueError: it is not an internationalised domain name.
    """
    if domain.isascii():
        return domain.lower()
    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except UnicodeError as error:  # IDNAError is one
        raise ValueError(f"must have a domain that DNS can hold: {error}") from None


def domain_of(email: str) -> str:
    """Return the domain of an address as DNS has it; if it is not a domain name, in lower case. Never raises."""
    domain = email.rpartition("@")[2]
    try:
        return domain_label(domain)
    except ValueError:
        return domain.lower()


def wire(email: str) -> str:
    """Return an address as SMTP has it: the domain in A-labels, which every server understands.

    Raises:
        ValueError: the domain is not an internationalised domain name.
    """
    if email.isascii():
        return email
    local, _, domain = email.rpartition("@")
    return f"{local}@{domain_label(domain)}"


def canonical(email: str) -> str:
    """Return the one spelling by which an address is stored and looked up; never raises.

    RFC 5321, 2.4 allows a case-sensitive part before the @. Providers do not use that, and with it one person could be
    mailed twice.
    """
    if email.isascii():
        return email.lower()
    local = email.rpartition("@")[0]
    return f"{unicodedata.normalize('NFC', local).lower()}@{domain_of(email)}"


def mailbox_of(email: str) -> str:
    """Return one name for the addresses that reach one mailbox at most providers.

    It has no `+tag`, and no dots where the provider ignores them. For limits only: mail goes to the address as given.
    """
    local, _, domain = canonical(email).rpartition("@")
    local = local.partition("+")[0] or local
    if domain in _DOTS_IGNORED:
        local, domain = local.replace(".", ""), _DOTS_IGNORED[domain]
    return f"{local}@{domain}"


Address = Annotated[str, StringConstraints(max_length=320), AfterValidator(address)]
"""A valid address, as the client spelt it."""
CanonicalAddress = Annotated[Address, AfterValidator(canonical)]
"""A valid address, in its canonical spelling."""
