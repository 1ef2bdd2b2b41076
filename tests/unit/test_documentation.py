"""Pages lead to places that exist, and pictures and lists of pages agree with what they show."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from runpy import run_path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
MAKE = re.compile(r"^`?(?:\$ )?make ([a-z][a-z-]+)\b", re.MULTILINE)


def list_pages() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


PAGES = list_pages()


def make_anchor(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def list_anchors(page: Path) -> set[str]:
    return {make_anchor(heading) for heading in HEADING.findall(CODE.sub("", page.read_text()))}


def find_broken_links(page: Path) -> list[str]:
    text = CODE.sub("", page.read_text())
    found = []
    for link in LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / name)) if name else page
        if not target.exists() or (anchor and anchor not in list_anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_a_page_leads_somewhere(name: str) -> None:
    assert find_broken_links(ROOT / name) == []


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `spec.model`, two\n[a](#one-specmodel-two) [b](#three) [c](other.md) [d](page.md#one)\n")
    assert find_broken_links(page) == ["#three", "other.md", "page.md#one"]


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (name, target)
        for name in PAGES
        for code in CODE.findall((ROOT / name).read_text()) + INLINE_CODE.findall((ROOT / name).read_text())
        for target in MAKE.findall(code)
    }
    assert named
    assert sorted((name, target) for name, target in named if target not in targets) == []


def test_the_index_lists_every_page() -> None:
    indexes = [ROOT / "docs/README.md", ROOT / "docs/decisions/README.md"]
    linked = {
        os.path.normpath(index.parent / link.partition("#")[0])
        for index in indexes
        for link in LINK.findall(index.read_text())
    }
    assert {str(ROOT / name) for name in PAGES if name.startswith("docs/")} - linked == {str(indexes[0])}


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_the_picture_is_the_one_that_its_script_draws() -> None:
    names = run_path(str(ROOT / "docs/pictures/architecture.py"))
    assert names["draw_picture"]() == names["PICTURE"].read_text(), "run python docs/pictures/architecture.py"


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((ROOT / "charts/hone/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == project["version"]
    assert re.search(rf"^## {re.escape(project['version'])}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_hooks_before_a_commit_download_nothing() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [entry["repo"] for entry in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks} <= {"ruff", "python", "git"}
