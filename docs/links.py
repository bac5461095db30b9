"""What makes a site of pages that are plain Markdown: their links, and the order of the pages.

A page may link to a README that the site includes in one of its pages: that page is meant. It may link to a folder: its
README, or else its module, is meant. Other files of the repository become downloads. An included file's links count
from that file's folder, and the page that includes it may be in another one.

The site's navigation is made from the links of the index pages, section by section, so that it is written once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
INCLUDE = re.compile(r"^```\{include\} (\S+)$", re.M)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCED = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
MAIN_FILES = ("README.md", "__main__.py", "__init__.py")


def included() -> dict[Path, Path]:
    """The files that pages include -> the page; the front page is also that of the repository's README."""
    pages = {ROOT / "README.md": DOCS / "index.md"}
    for page in DOCS.rglob("*.md"):
        for name in INCLUDE.findall(page.read_text()):
            pages[(page.parent / name).resolve()] = page
    return pages


def site_links(text: str, file: Path, page: Path) -> str:
    """The Markdown `text` of `file` with the links that `page`, which shows it, needs."""
    pages = included()

    def rewrite(match: re.Match[str]) -> str:
        target, anchor = (file.parent / match[1]).resolve(), match[2] or ""
        if not target.exists():
            return match[0]  # Sphinx warns of it
        if target.is_dir():
            mains = [path for name in MAIN_FILES if (path := target / name).exists()]
            if not mains:
                raise ValueError(
                    f"{file}: {match[1]} is a folder without any of {', '.join(MAIN_FILES)}: link to a file"
                )
            target = mains[0]
        if target == ROOT / "README.md":
            anchor = ""  # the front page has other headings
        if target == file and anchor:
            return anchor
        target = pages.get(target, target)
        name = os.path.relpath(target, page.parent)
        if target.suffix != ".md":
            return name
        return f"{name}{anchor}" if target.is_relative_to(DOCS) else f"path:{name}"  # MyST takes .md for a page

    parts, start = [], 0
    for fence in FENCED.finditer(text):
        parts += [LINK.sub(rewrite, text[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*parts, LINK.sub(rewrite, text[start:])])


def navigation(text: str, page: Path) -> str:
    """A hidden table of contents per section of an index page, from its links to pages below its folder.

    The introduction of the front page links to pages of later sections, and has none.
    """
    trees, seen = [], set()
    for section in re.split(r"^## ", text, flags=re.M)[page.parent == DOCS :]:
        names = [name for name, _ in LINK.findall(section) if name.endswith(".md") and not name.startswith("..")]
        names = [name for name in dict.fromkeys(names) if name not in seen and (page.parent / name).exists()]
        seen |= set(names)
        if names:
            caption = section.partition("\n")[0].removeprefix("# ")
            trees.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"]))
    return "\n\n".join([text, *trees])


def setup(app) -> None:
    def page_read(app, docname, source):
        page = Path(app.env.doc2path(docname))
        source[0] = site_links(source[0], page, page)
        if page.name == "index.md":
            source[0] = navigation(source[0], page)

    def include_read(app, relative_path, parent_docname, source):  # MyST passes no more than the parent's last part
        file = (Path(app.srcdir) / relative_path).resolve()
        source[0] = site_links(source[0], file, Path(app.env.doc2path(app.env.docname)))

    app.connect("source-read", page_read)
    app.connect("include-read", include_read)
