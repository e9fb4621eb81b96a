"""Databases: SQLite (WAL, synchronous=FULL) or PostgreSQL, with SQLAlchemy Core."""
