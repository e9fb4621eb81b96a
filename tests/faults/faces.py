"""The three HTTP faces on real sockets, in threads of this process, with whoever may call them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from bellhop.sql.migrations import migrate
from bellhop.web import tokens
from bellhop.web.auth import Scope, new_key
from services.gateway.app import build as build_gateway
from services.gateway.settings import Settings as GatewaySettings
from services.leaderboard.app import build as build_leaderboard
from services.leaderboard.settings import LeaderboardSettings
from services.notifier.app import build as build_notifier
from services.notifier.settings import NotifierSettings
from tests.support import Vhost, wait_until
from tests.support.serving import serving

TOKEN_KEY = "the faces' token key: 0123456789 0123456789"


@dataclass(frozen=True)
class Face:
    """One service's HTTP face."""

    name: str
    app: FastAPI
    port: int
    key: str
    """Opens everything here."""
    post: tuple[str, dict[str, Any]]
    """A path that takes JSON, and a good body for it; the notifier takes none, so there it is ignored."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=30)


@asynccontextmanager
async def three_faces(vhost: Vhost, folder: Path, **settings: Any) -> AsyncIterator[list[Face]]:
    """Serve all three until the block ends."""
    common = {"amqp_url": vhost.amqp_url, "token_key": TOKEN_KEY, "instance": "tests", "shutdown_seconds": 3}
    urls = {name: f"sqlite+aiosqlite:///{folder}/{name}.db" for name in ("gateway", "leaderboard")}
    for name, url in urls.items():
        await migrate(url, f"services.{name}")
    admin = new_key()
    board = tokens.mint(TOKEN_KEY, "tests", 3600, "leaderboard", scopes=[Scope.ADMIN])
    stream = tokens.mint(TOKEN_KEY, "tests", 3600, "stream", channels=["news"])
    leaderboard = build_leaderboard(
        LeaderboardSettings.model_validate(common | {"database_url": urls["leaderboard"], "pull_seconds": 0.1})
    )
    notifier = build_notifier(NotifierSettings.model_validate(common))
    async with AsyncExitStack() as stack:
        board_port = stack.enter_context(serving(leaderboard))
        stream_port = stack.enter_context(serving(notifier))
        gateway = build_gateway(
            GatewaySettings.model_validate(
                common
                | {
                    "database_url": urls["gateway"],
                    "admin_key": admin,
                    "leaderboard_url": f"http://127.0.0.1:{board_port}",
                    "notifier_url": f"http://127.0.0.1:{stream_port}",
                }
                | settings
            )
        )
        gateway_port = stack.enter_context(serving(gateway))
        mail = {"to": "ada@example.com", "subject": "Hello", "text": "Hello"}
        faces = [
            Face("gateway", gateway, gateway_port, admin, ("/v1/mail", mail)),
            Face("leaderboard", leaderboard, board_port, board, ("/v1/leaderboards/b/ranks", {"players": ["ada"]})),
            Face("notifier", notifier, stream_port, stream, ("/v1/poll", {})),
        ]
        async with httpx.AsyncClient(trust_env=False) as http:
            for face in faces:

                async def ready(url: str = face.url) -> bool:
                    return (await http.get(f"{url}/readyz")).status_code == 200

                await wait_until(ready, 30, f"the {face.name} is ready")
        async with faces[1].client(board) as client:
            assert (await client.put("/v1/leaderboards/b", json={})).status_code in (200, 201)
        yield faces


def routes(face: Face) -> list[tuple[str, str]]:
    """Return (method, path template) of everything the app serves, the routes without FastAPI among them."""
    found = [
        (method, route.path)  # type: ignore[attr-defined]
        for route in face.app.router.routes
        for method in sorted(getattr(route, "methods", None) or ())
        if method != "HEAD"
    ]
    if face.name == "notifier":
        found.append(("GET", "/v1/stream"))
    return found
