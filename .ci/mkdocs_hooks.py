"""Puts the files of the repository that the pages link to beside the pages: every link of the site leads somewhere.

mkdocs knows the files below ``docs/`` only. A page's ``../t2ikit/batch.py`` becomes ``repository/t2ikit/batch.py``, a
copy; a Markdown file becomes a page, whose links are those of its own folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
COPIES = "repository"
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what pages link to outside of ``docs/``, and what the pages among that link to."""
    waiting = [ROOT / "docs" / file.src_uri for file in files.documentation_pages()]
    known = set()
    while waiting:
        page = waiting.pop()
        for match in LINK.finditer(page.read_text(encoding="utf-8")):
            target = Path(os.path.normpath(page.parent / match[2]))
            if target in known or target.is_relative_to(ROOT / "docs") or not target.is_file():
                continue
            known.add(target)
            uri = f"{COPIES}/{target.relative_to(ROOT).as_posix()}"
            files.append(File.generated(config, uri, abs_src_path=str(target)))
            waiting += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to where the files are on the site; one that leads nowhere stays, and mkdocs names it."""
    uri = PurePosixPath(page.file.src_uri)
    folder = uri.relative_to(COPIES).parent if uri.is_relative_to(COPIES) else PurePosixPath("docs") / uri.parent

    def moved(match: re.Match[str]) -> str:
        path = os.path.normpath(folder / match[2])
        target = path.removeprefix("docs/") if path.startswith("docs/") else f"{COPIES}/{path}"
        relative = os.path.relpath(target, uri.parent)
        return f"{match[1]}{relative}{match[3] or ''}{match[4]}"

    return LINK.sub(moved, markdown)
