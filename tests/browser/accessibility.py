"""axe-core on a page, at the widths and in the colours in which people see it.

The folder BELLHOP_AUDIT_PICTURES, where there is one, keeps a picture of each.
"""

import gzip
import json
import os
from pathlib import Path

from tests.browser.chromium import Page

AXE = gzip.decompress((Path(__file__).parent / "axe-core" / "axe.min.js.gz").read_bytes()).decode()
WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
_RUN = """
axe.run({resultTypes: ["violations"]}).then(found => found.violations
  .filter(one => one.impact === "serious" || one.impact === "critical")
  .flatMap(one => one.nodes.map(node =>
    `${one.id} (${one.impact}): ${node.html.slice(0, 160)} ${node.failureSummary}`)))
"""


class Audit:
    """Gathers what axe-core finds serious or critical on the pages that a test visits."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.found: dict[str, list[str]] = {}

    async def check(self, name: str) -> None:
        """Check the page as it is now, in each width and colour scheme."""
        folder = os.environ.get("BELLHOP_AUDIT_PICTURES")
        await self._page.evaluate(f"{AXE}; null")
        for width in WIDTHS:
            await self._page.resize(width, 900)
            for scheme in SCHEMES:
                await self._page.prefer(scheme)
                await self._page.evaluate(
                    "Promise.all(document.getAnimations().map(one => one.finished)).then(() => null)"
                )
                where = f"{name}-{width}-{scheme}"
                if folder:
                    (Path(folder) / f"{where}.png").write_bytes(await self._page.screenshot())
                if violations := await self._page.evaluate(_RUN):
                    self.found[where] = violations

    def report(self) -> str:
        """Return what was found, for people."""
        return json.dumps(self.found, indent=1)
