"""The ceilings: FastAPI routes that do nothing but read their body or their path, on the same kind of server."""

import os
from typing import Any

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/readyz")
async def ready() -> dict[str, str]:
    """Say that this process answers."""
    return {}


@app.get("/nothing/{board}/players/{player}")
async def nobody(board: str, player: str) -> dict[str, str]:
    """Do nothing."""
    return {"player": player}


@app.post("/nothing", status_code=202)
async def nothing(body: dict[str, Any]) -> dict[str, str]:
    """Do nothing."""
    return {"id": "nothing"}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["BELLHOP_PORT"]), loop="uvloop", http="httptools", log_level="error",
                access_log=False)  # fmt: skip
