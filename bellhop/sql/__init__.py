"""Durable state: SQLite (WAL, synchronous=FULL) or PostgreSQL, by SQLAlchemy Core."""
