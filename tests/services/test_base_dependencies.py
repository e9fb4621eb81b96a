"""What a consumer of messages needs: neither the packages of the HTTP interfaces nor those of the databases."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
MODULES = {"pyjwt": "jwt", "pyyaml": "yaml"}
"""Where a module has another name than its package."""

IMPORT_ALL = """
import importlib, pkgutil, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in set(sys.argv[2:]):
            raise ModuleNotFoundError(f"{name} is not a base dependency")

sys.meta_path.insert(0, Refused())
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
"""


def modules(requirements: list[str]) -> set[str]:
    """Return the top modules of the packages that `requirements` name."""
    names = {re.split(r"[^A-Za-z0-9_.-]", requirement)[0] for requirement in requirements} - {"bellhop"}
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


EXTRAS = modules([each for extra in PROJECT["optional-dependencies"].values() for each in extra]) | {"starlette"}


@pytest.mark.parametrize("package", ["bellhop.amqp", "bellhop.contracts"])
def test_its_modules_need_no_extra(package: str) -> None:
    """Each is imported in a process that has the base dependencies alone."""
    assert {"fastapi", "uvicorn", "sqlalchemy", "jwt", "numpy"} <= EXTRAS
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, package, *EXTRAS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_service_has_the_extras_that_it_stands_on() -> None:
    """An image with the extra of its service alone has an HTTP interface and a database."""
    extras = PROJECT["optional-dependencies"]
    assert extras["service"] == ["bellhop[web,sql]"]
    for name in ("gateway", "mailer", "notifier", "leaderboard", "local"):
        assert "bellhop[service]" in extras[name], name
