"""The words that services exchange: pydantic models, importing nothing of ours."""
