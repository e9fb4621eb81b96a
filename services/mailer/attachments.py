"""Attachments: small ones are part of their task, uploaded ones are fetched from the gateway before their mail is sent.

A broadcast sends one file to many recipients, so fetched attachments are cached on disk. A file is named by its hash.
"""

import asyncio
import base64
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from bellhop.contracts.mail import MAX_ATTACHMENTS_BYTES, AttachmentRequest
from bellhop.web.peer import Peer, PeerUnavailable
from services.mailer.message import Attachment

AUDIENCE = "attachments"
CACHE_BYTES = 200 * 1024 * 1024


class Attachments:
    """Returns the attachments of mails."""

    def __init__(self, gateway: Peer | None, folder: Path | None) -> None:
        """`gateway`: None without a service key; then uploads cannot be fetched."""
        self._gateway = gateway
        self._folder = folder or Path(tempfile.gettempdir()) / "bellhop-attachments"
        self._known: dict[str, tuple[str, str, str]] = {}  # id -> filename, content type, hash

    async def get(self, requested: Sequence[AttachmentRequest]) -> tuple[Attachment, ...]:
        """Return the attachments of one mail.

        Raises:
            ValueError: an attachment does not exist, or all together are too large; the text names the reason.
            PeerUnavailable: the gateway does not return an uploaded attachment.
        """
        found = []
        for one in requested:
            if one.id is not None:
                found.append(await self._uploaded(one.id))
            else:
                assert one.filename is not None
                assert one.content_type is not None
                assert one.content_base64 is not None
                found.append(Attachment(one.filename, one.content_type, base64.b64decode(one.content_base64)))
        size = sum(len(one.content) for one in found)
        if size > MAX_ATTACHMENTS_BYTES:
            raise ValueError(f"the attachments have {size} bytes together; a mail may have {MAX_ATTACHMENTS_BYTES}")
        return tuple(found)

    async def _uploaded(self, attachment_id: str) -> Attachment:
        known = self._known.get(attachment_id)
        if known is not None:
            filename, content_type, digest = known
            content = await asyncio.to_thread(self._cached, digest)
            if content is not None:
                return Attachment(filename, content_type, content)
        return await self._fetch(attachment_id)

    async def _fetch(self, attachment_id: str) -> Attachment:
        if self._gateway is None:
            raise ValueError("uploaded attachments need BELLHOP_SERVICE_KEY in the mailer's settings")
        path = f"/v1/attachments/{quote(attachment_id, safe='')}/content"
        answer = await self._gateway.request("GET", path, audience=AUDIENCE)
        if answer.status_code in (404, 410):
            raise ValueError(f"there is no attachment {attachment_id} any more: upload it again")
        if answer.status_code != 200:
            raise PeerUnavailable(f"the gateway answers {answer.status_code} to a request for an attachment")
        digest = await asyncio.to_thread(lambda: hashlib.sha256(answer.content).hexdigest())
        if digest != answer.headers.get("x-content-sha256"):
            raise PeerUnavailable("an attachment was damaged on its way from the gateway")
        filename = unquote(answer.headers["x-filename"])
        content_type = answer.headers["content-type"]
        await asyncio.to_thread(self._store, digest, answer.content)
        if len(self._known) > 10_000:
            self._known.clear()
        self._known[attachment_id] = (filename, content_type, digest)
        return Attachment(filename, content_type, answer.content)

    # The cache. Its files are named by their hash, so that a damaged file is detected and never sent.

    def _cached(self, digest: str) -> bytes | None:
        path = self._folder / digest
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                return None
            path.touch()
        except OSError:
            return None
        return content

    def _store(self, digest: str, content: bytes) -> None:
        """Write a file to the cache, and delete the oldest files if it is too large. A full disk is not an error."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(content)
            Path(file.name).rename(self._folder / digest)
            kept = sorted(((one.stat(), one) for one in self._folder.iterdir()), key=lambda each: -each[0].st_mtime)
            size = 0
            for status, path in kept:
                size += status.st_size
                if size > CACHE_BYTES:
                    path.unlink(missing_ok=True)
        except OSError:
            return
