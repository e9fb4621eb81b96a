"""Attachments: uploaded once, used by many mails, deleted when no mail can need them any more."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.base import derived_id
from bellhop.sql.database import Database
from services.gateway.outbox.store import now_ms
from services.gateway.tables import metadata

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

# Updated by every upload and deletion, in their transactions: a sum over all uploads would take ever longer.
attachment_usage = sa.Table(
    "attachment_usage",
    metadata,
    sa.Column("owner", sa.String(255), primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)


class OverQuota(Exception):
    """An upload exceeds a quota; the text names the quota."""


@dataclass(frozen=True, slots=True)
class StoredAttachment:
    """One upload."""

    id: str
    filename: str
    content_type: str
    sha256: str
    size: int
    expires_at: int
    """Milliseconds since 1970."""
    content: bytes = b""


class AttachmentStore:
    """The uploads."""

    def __init__(self, database: Database, keep_days: float, quota: int, total: int) -> None:
        """`quota`, `total`: bytes that one key, and all keys together, may have.

        An upload is kept for `keep_days`, and for as long after the time of the last mail that refers to it: no mail
        is tried for longer.
        """
        self._database = database
        self._keep_ms = round(keep_days * 86_400_000)
        self._quota = quota
        self._total = total

    async def add(self, owner: str, filename: str, content_type: str, content: bytes) -> StoredAttachment:
        """Keep an upload. The same one again is the same attachment, kept for longer.

        Raises:
            OverQuota: it would be more than the key, or all keys together, may have; nothing was kept.
        """
        digest = hashlib.sha256(content).hexdigest()
        one = StoredAttachment(
            id=derived_id("attachment", owner, filename, content_type, digest),
            filename=filename,
            content_type=content_type,
            sha256=digest,
            size=len(content),
            expires_at=now_ms() + self._keep_ms,
            content=content,
        )
        row = {"owner": owner} | {name: getattr(one, name) for name in StoredAttachment.__dataclass_fields__}
        insert = self._database.insert(attachments).values(row).on_conflict_do_nothing()
        async with self._database.write() as connection:
            if (await connection.execute(insert.returning(attachments.c.id))).first() is not None:
                await self._use(connection, owner, one.size)
                return one
            longer = (attachments.c.id == one.id) & (attachments.c.expires_at < one.expires_at)
            await connection.execute(sa.update(attachments).where(longer).values(expires_at=one.expires_at))
        return one

    async def _use(self, connection: AsyncConnection, owner: str, size: int) -> None:
        """Count an upload; concurrent uploads of one key are counted one after the other."""
        insert = self._database.insert(attachment_usage).values(owner=owner, bytes=size)
        counted = insert.on_conflict_do_update(
            index_elements=["owner"], set_={"bytes": attachment_usage.c.bytes + insert.excluded.bytes}
        ).returning(attachment_usage.c.bytes)
        used = (await connection.execute(counted)).scalar_one()
        if used > self._quota:
            raise OverQuota(f"This key's attachments would have {used} bytes of at most {self._quota}")
        used = (await connection.execute(sa.select(sa.func.sum(attachment_usage.c.bytes)))).scalar_one()
        if used > self._total:
            raise OverQuota(f"All attachments together would have {used} bytes of at most {self._total}")

    async def refer(self, owner: str, ids: Sequence[str], at: int) -> dict[str, int]:
        """Keep what a mail at the time `at` (milliseconds) refers to; return the sizes of those that `owner` has."""
        mine = sa.and_(attachments.c.id.in_(ids), attachments.c.owner == owner)
        async with self._database.read() as connection:
            found = await connection.execute(
                sa.select(attachments.c.id, attachments.c.size, attachments.c.expires_at).where(mine)
            )
            rows = found.all()
        # Not written for each mail: many mails with one attachment would otherwise be as many writes.
        needed = at + self._keep_ms
        if any(row.expires_at < needed - self._keep_ms // 10 for row in rows):
            async with self._database.write() as connection:
                await connection.execute(
                    sa.update(attachments).where(mine, attachments.c.expires_at < needed).values(expires_at=needed)
                )
        return {row.id: row.size for row in rows}

    async def get(self, attachment_id: str) -> StoredAttachment | None:
        """Return an upload with its content."""
        columns = [attachments.c[name] for name in StoredAttachment.__dataclass_fields__]
        async with self._database.read() as connection:
            found = await connection.execute(sa.select(*columns).where(attachments.c.id == attachment_id))
            row = found.one_or_none()
        return None if row is None else StoredAttachment(*row)


async def take_off_usage(connection: AsyncConnection, gone: Sequence[tuple[str, int]]) -> None:
    """Note that uploads, each (owner, bytes), were deleted."""
    sizes: Counter[str] = Counter()
    for owner, size in gone:
        sizes[owner] += size
    # In one order, so that two gateways that delete never wait for each other.
    for owner, size in sorted(sizes.items()):
        mine = attachment_usage.c.owner == owner
        await connection.execute(sa.update(attachment_usage).where(mine).values(bytes=attachment_usage.c.bytes - size))
