"""Generated pages are what their generator writes; links and examples in the docs hold."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HIDDEN = (".venv", ".cache", "node_modules")
PAGES = sorted(page for page in ROOT.rglob("*.md") if not any(part.startswith(HIDDEN) for part in page.parts))


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the wheel holds no docs")
def test_the_telemetry_page_is_in_step() -> None:
    generator = runpy.run_path(str(ROOT / "tools/telemetry_page.py"))
    assert (ROOT / "docs/telemetry.md").read_text() == generator["page"](), "run python tools/telemetry_page.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    if not (ROOT / "docs").is_dir():
        pytest.skip("the wheel holds no docs")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
