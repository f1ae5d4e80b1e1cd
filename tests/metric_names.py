"""What docs/metrics.md says of metrics, and which names it lacks."""

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"
STAGES = ("", "critique/", "revise/")


def documented() -> dict[str, tuple[str, str]]:
    """Unit and meaning by name; `<...>` in a name stands for anything."""
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or len(cells) != 3:
            continue
        names = [stage + name for stage in STAGES for name in re.findall(r"\*stage/\*`([^`]+)`", cells[0])]
        for name in names or re.findall(r"`([^`]+)`", cells[0]):
            assert name not in found, f"docs/metrics.md has two lines for {name}."
            found[name] = (cells[1], cells[2])
    return found


def undocumented(names: Iterable[str]) -> list[str]:
    """Those that the page has no line for. A `*` in a name stands for what is filled in: one such name will do."""
    lines = documented()
    every = re.compile("|".join(re.sub(r"<[^>]*>", ".+", re.escape(name)) for name in lines))

    def known(name: str) -> bool:
        return bool(every.fullmatch(name)) or ("*" in name and bool(fnmatch.filter(lines, name)))

    return sorted({name for name in names if not known(name)})


def complaint(missing: Iterable[str]) -> str:
    return f"docs/metrics.md has no line for: {', '.join(sorted(missing))}. Add name, unit and meaning."
