"""The leaderboard's tables. Times are whole microseconds since 1970 (UTC).

There is no index on scores: ranks are computed in memory, and an index would cost more than all other writes.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

boards = sa.Table(
    "boards",
    metadata,
    sa.Column("board", sa.String(128), primary_key=True),
    sa.Column("order", sa.String(16), nullable=False),
    sa.Column("operator", sa.String(16), nullable=False),
    sa.Column("season", sa.String(16), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("hidden", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("boards_by_version", "version"),
)

# Boards that were deleted, as long as the inbox remembers: scores accepted before `deleted_at` do not bring them back,
# and the ids of their scores are free again.
deleted_boards = sa.Table(
    "deleted_boards",
    metadata,
    sa.Column("board", sa.String(128), primary_key=True),
    sa.Column("deleted_at", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Index("deleted_boards_by_version", "version"),
    sqlite_with_rowid=False,
)

# Rankings of deleted boards whose results are still to be deleted, part by part.
discarded_rankings = sa.Table(
    "discarded_rankings",
    metadata,
    sa.Column("ranking", sa.Integer, primary_key=True, autoincrement=False),
)

# One row. Every commit that changes something takes the next `version` and writes it to all rows that it changes, so
# that a replica reads only what is new to it. `last_ranking` is the last id that a ranking got: none comes twice.
# Every score that a gateway answered 202 before `as_of` is applied.
progress = sa.Table(
    "progress",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("last_ranking", sa.Integer, nullable=False),
    sa.Column("as_of", sa.BigInteger),
)

# `erasures` grows when a player is taken out: then a replica cannot catch up, and has to read the ranking again.
rankings = sa.Table(
    "rankings",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("board", sa.String(128), nullable=False),
    sa.Column("season", sa.String(16), nullable=False),
    sa.Column("players", sa.Integer, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("erasures", sa.Integer, nullable=False),
    sa.UniqueConstraint("board", "season"),
    sa.Index("rankings_by_version", "version"),
)

# One row for each player of a ranking: the result, and the version that brought it. `rest` is what `score` lacks of a
# sum, in millionths and in the direction in which the order counts (sums.py).
results = sa.Table(
    "results",
    metadata,
    sa.Column("ranking", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("player", sa.String(128), primary_key=True),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("rest", sa.BigInteger, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)

# The inbox: messages by `Envelope.identity` (so `source` has the owner, too), and
# single scores that carried an id, whose effect is in `results`.
applied_messages = sa.Table(
    "applied_messages",
    metadata,
    sa.Column("source", sa.String(1024), primary_key=True),
    sa.Column("id", sa.String(1024), primary_key=True),
    sa.Column("applied_at", sa.BigInteger, nullable=False),
    sa.Index("applied_messages_by_time", "applied_at"),
    sqlite_with_rowid=False,
)

# Messages in retry queues, by the same identity: `as_of` must not pass `accepted_at` of any.
postponed_messages = sa.Table(
    "postponed_messages",
    metadata,
    sa.Column("source", sa.String(1024), primary_key=True),
    sa.Column("id", sa.String(1024), primary_key=True),
    sa.Column("accepted_at", sa.BigInteger, nullable=False),
    sa.Column("postponed_at", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

applied_scores = sa.Table(
    "applied_scores",
    metadata,
    sa.Column("board", sa.String(128), primary_key=True),
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("applied_at", sa.BigInteger, nullable=False),
    sa.Index("applied_scores_by_time", "applied_at"),
    sqlite_with_rowid=False,
)
