"""What `scripts/write-tables` writes into the documentation."""

import subprocess
import sys
from pathlib import Path


def test_the_tables_in_the_documentation_are_those_of_the_code() -> None:
    """Settings, and what the mailer does with a reply."""
    script = Path(__file__).parents[2] / "scripts/write-tables"
    run = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "")
