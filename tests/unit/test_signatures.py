"""What the signatures of the gateway say: rows and answers have types of their own."""

import ast
from pathlib import Path

import pytest

FILES = sorted(path for path in Path("services/gateway").rglob("*.py") if path.stem in ("routes", "store"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_route_and_no_store_takes_or_returns_an_untyped_dictionary(path: Path) -> None:
    """A `dict[str, Any]` does not say which keys there are."""
    untyped = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            annotations = [argument.annotation for argument in [*node.args.args, *node.args.kwonlyargs]]
            said = [ast.unparse(each) for each in [*annotations, node.returns] if each is not None]
            untyped += [node.name for each in said if "dict[str, Any]" in each]
    assert untyped == []
