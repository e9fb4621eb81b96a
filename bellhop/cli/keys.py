"""`bellhop keys`: the API keys of a running Bellhop, over HTTP with its admin key."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bellhop.cli.errors import CannotRun

if TYPE_CHECKING:
    import httpx

commands = typer.Typer(no_args_is_help=True, help="API keys of the Bellhop that runs here, or at BELLHOP_URL.")


@commands.command("list")
def list_keys() -> None:
    """List all keys, including revoked ones. The secrets cannot be shown again."""
    keys = _call("GET", "/v1/keys").json()["keys"]
    rows = [("id", "name", "scopes", "created")]
    for key in keys:
        revoked = f", revoked {key['revoked_at'][:10]}" if key["revoked_at"] else ""
        rows.append((key["id"], key["name"], " ".join(key["scopes"]), key["created_at"][:10] + revoked))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@commands.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is; tasks belong to the name, so a key can be replaced.")],
    scopes: Annotated[list[str], typer.Argument(help="What it may do, like mail:send mail:read, or admin.")],
) -> None:
    """Create a key and print it. It cannot be shown again."""
    print(_call("POST", "/v1/keys", {"name": name, "scopes": scopes}).json()["key"])


@commands.command()
def revoke(key_id: Annotated[str, typer.Argument(help="The id, as `bellhop keys list` shows it.")]) -> None:
    """Revoke a key. Every replica refuses it within five seconds."""
    _call("DELETE", f"/v1/keys/{key_id}")
    print(f"{key_id} is revoked", file=sys.stderr)


def _call(method: str, path: str, body: Any = None) -> "httpx.Response":
    """Send a request to the gateway.

    Raises:
        CannotRun: the gateway does not answer, or refuses the request; then with its reason.
    """
    import httpx

    # URL and key are found in the same way as by the demo.
    from bellhop.demo.settings import DemoSettings

    settings = DemoSettings.load()
    headers = {"Authorization": f"Bearer {settings.admin_key.get_secret_value()}"}
    try:
        with httpx.Client(base_url=settings.url, headers=headers, timeout=30, trust_env=False) as http:
            response = http.request(method, path, json=body)
    except httpx.TransportError as error:
        raise CannotRun(
            f"Bellhop is not up at {settings.url} ({error}): start it with 'make up', or set BELLHOP_URL to where it"
            " runs."
        ) from None
    if not response.is_success:
        raise CannotRun(_refusal(response))
    return response


def _refusal(response: "httpx.Response") -> str:
    try:
        problem = response.json()
    except ValueError:
        return f"The gateway answered {response.status_code} {response.reason_phrase}."
    errors = [f"{error['pointer'].removeprefix('#/')} {error['detail']}" for error in problem.get("errors", [])]
    return "; ".join(errors) or str(problem["detail"])
