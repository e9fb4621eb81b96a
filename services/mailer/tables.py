"""The mailer's tables."""

import sqlalchemy as sa

from bellhop.tasks.tables import inbox_tables, rate_table

metadata = sa.MetaData()

INBOX = inbox_tables(metadata, "mailer")
LIMITS = rate_table(metadata, "mailer")
