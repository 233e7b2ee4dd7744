"""The pages for people: their links lead somewhere, and the files that they name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import CHECKOUT

PAGES = [
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((CHECKOUT / "docs").glob("*.md")),
    *(CHECKOUT / f"{folder}/README.md" for folder in ("launchers", "benchmarks")),
    *sorted((CHECKOUT / "environments").glob("*/README.md")),
]


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return what a link can name in a page: its headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_files_that_the_architecture_names_exist() -> None:
    text = (CHECKOUT / "docs/architecture.md").read_text()
    tree = text[text.index("```") : text.index("## Layers")]
    names = set(re.findall(r"[\w/]+\.py\b", tree))
    assert len(names) > 40
    folders = ("rl_experiments", "launchers", "environments")
    files = [str(path) for folder in folders for path in (CHECKOUT / folder).rglob("*.py")]
    for name in names:
        assert any(file.endswith(f"/{name}") for file in files), name


def test_the_readme_is_a_first_page() -> None:
    lines = (CHECKOUT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100
