"""Contracts between services and with clients: pydantic models. They import no other package of Bellhop."""
