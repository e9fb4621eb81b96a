"""Attachments: uploaded once, referred to by many mails, deleted when no mail can need them any more."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from bellhop.contracts.base import derived_id
from bellhop.sql.database import Database
from services.gateway.store.outbox import now_ms
from services.gateway.store.tables import metadata

KEEP_MS = 30 * 86_400_000
"""After its upload, and after the time of the last mail that refers to it. No mail is tried for as long."""

attachments = sa.Table(
    "attachments",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("filename", sa.String(255), nullable=False),
    sa.Column("content_type", sa.String(127), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Index("attachments_by_expiry", "expires_at"),
)


@dataclass(frozen=True, slots=True)
class Attachment:
    """One upload."""

    id: str
    filename: str
    content_type: str
    sha256: str
    size: int
    expires_at: int
    """Milliseconds since 1970."""
    content: bytes = b""


class Attachments:
    """The uploads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, owner: str, filename: str, content_type: str, content: bytes) -> Attachment:
        """Keep an upload. The same one again is the same attachment, kept for longer."""
        digest = hashlib.sha256(content).hexdigest()
        one = Attachment(
            id=derived_id("attachment", owner, filename, content_type, digest),
            filename=filename,
            content_type=content_type,
            sha256=digest,
            size=len(content),
            expires_at=now_ms() + KEEP_MS,
            content=content,
        )
        insert = self._database.insert(attachments).values(
            id=one.id, owner=owner, filename=filename, content_type=content_type, sha256=digest, size=one.size,
            content=content, expires_at=one.expires_at,
        )  # fmt: skip
        async with self._database.write() as connection:
            await connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["id"], set_={"expires_at": insert.excluded.expires_at},
                    where=attachments.c.expires_at < insert.excluded.expires_at,
                )
            )  # fmt: skip
        return one

    async def refer(self, owner: str, ids: Sequence[str], at: int) -> dict[str, int]:
        """Keep what a mail at the time `at` (milliseconds) refers to; return the sizes of those that `owner` has."""
        mine = sa.and_(attachments.c.id.in_(ids), attachments.c.owner == owner)
        async with self._database.read() as connection:
            found = await connection.execute(
                sa.select(attachments.c.id, attachments.c.size, attachments.c.expires_at).where(mine)
            )
            rows = found.all()
        # Written only now and then: a mail to each of many would otherwise write as many times.
        needed = at + KEEP_MS
        if any(row.expires_at < needed - KEEP_MS // 10 for row in rows):
            async with self._database.write() as connection:
                await connection.execute(
                    sa.update(attachments).where(mine, attachments.c.expires_at < needed).values(expires_at=needed)
                )
        return {row.id: row.size for row in rows}

    async def get(self, attachment_id: str) -> Attachment | None:
        """Return an upload with its content."""
        columns = [attachments.c[name] for name in Attachment.__dataclass_fields__]
        async with self._database.read() as connection:
            found = await connection.execute(sa.select(*columns).where(attachments.c.id == attachment_id))
            row = found.one_or_none()
        return None if row is None else Attachment(*row)

    async def purge(self) -> int:
        """Delete what no mail needs any more; return how many went."""
        async with self._database.write() as connection:
            gone = await connection.execute(sa.delete(attachments).where(attachments.c.expires_at < now_ms()))
        return int(gone.rowcount)
