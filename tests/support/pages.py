"""The examples of a page of the documentation: its indented blocks and its fenced blocks that name a language."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^(?P<heading>#+ .*)\n"
    r"|^```(?P<language>\w*)\n(?P<fenced>(?:.*\n)*?)```\n"
    r"|(?P<indented>(?:^    .*\n)(?:(?:^\n)*^    .*\n)*)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One example."""

    page: str
    heading: str
    text: str

    @property
    def name(self) -> tuple[str, str]:
        """The page and the first line: what tells this block from all others."""
        return self.page, self.text.splitlines()[0].strip()


def blocks(page: str, heading: str | None = None, folder: Path = ROOT) -> list[Block]:
    """Return the examples of a page or of a section, in their order; a fence without a language is a picture."""
    found, section = [], ""
    for match in BLOCK.finditer((folder / page).read_text()):
        if match["heading"]:
            section = match["heading"].lstrip("# ")
        elif match["language"]:
            found.append(Block(page, section, match["fenced"]))
        elif match["indented"]:
            lines = (line[4:] for line in match["indented"].splitlines())
            found.append(Block(page, section, "".join(f"{line}\n" for line in lines)))
    return [block for block in found if heading in {None, block.heading}]
