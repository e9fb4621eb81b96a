"""The command that prints the AsyncAPI document."""

import json
import subprocess
import sys


def test_the_command_prints_json() -> None:
    """On standard output, and nothing else."""
    said = subprocess.run(
        [sys.executable, "-m", "bellhop.cli.main", "asyncapi"], check=True, capture_output=True, timeout=60
    )
    assert json.loads(said.stdout)["asyncapi"] == "3.0.0"
    assert said.stderr == b""
