"""What mkdocs does to the pages of docs/, which are plain Markdown that GitHub shows as well.

Files of the repository that a page links to come along under `repository/`; tables are filled in where a page says
`<!-- generated: NAME -->`; each system has a page of its own; figures of samples say when and by which code they were
measured; layout that only GitHub's Markdown reads is written as Python-Markdown wants it.
"""

import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority  # pyright: ignore[reportMissingImports]
from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

from analysis.schema import RUNS
from scripts.docs_site import cards
from scripts.docs_site.configuration import configuration
from scripts.docs_site.stored import TABLES
from scripts.samples import RESULTS, caption

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)")
MARKER = re.compile(r"<!-- generated: (\w+) -->")
FIGURE = re.compile(r"^!\[[^\]]*\]\((?:\.\./)+results/(sample-[\w-]+)/[^)]+\)$", re.MULTILINE)
PICTURES = {".png", ".svg"}
FOLDER = "repository"
COMPARED = {"fidelity": "fidelity", "fidelity_1gbit": "hosts-1gbit", "fidelity_100mbit": "hosts-100mbit"}
GENERATED: Mapping[str, Callable[[], str]] = {
    **TABLES,
    **{name: (RESULTS / f"sample-{sample}" / "fidelity.md").read_text for name, sample in COMPARED.items()},
    "configuration": configuration,
    "systems": cards.index,
}


@event_priority(-100)  # after the offline plugin, which names a script on another host
def on_config(config: Any) -> Any:
    """What lets pages that are opened as files be searched comes along."""
    config.extra["polyfills"] = ["assets/local_search.js"]
    (results,) = (entry["Results"] for entry in config.nav if "Results" in entry)
    results[-1]["Systems"] += [f"systems/{key}.md" for key in cards.systems()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside docs/ that pages link to."""
    pages = [file for file in files if file.src_uri.endswith(".md")]
    found = {path for page in pages for path in outside(Path(page.abs_src_path).read_text(), page.src_uri)}
    for path in sorted(found):
        files.append(File.generated(config, brought(path), abs_src_path=str(ROOT / path)))
    for key, text in cards.pages().items():
        files.append(File.generated(config, f"systems/{key}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page as Python-Markdown is to read it."""
    markdown = MARKER.sub(lambda marker: generated(marker.group(1)), markdown)
    markdown = FIGURE.sub(_with_caption, markdown)
    return for_python_markdown(_links(markdown, page.file.src_uri))


def _with_caption(figure: re.Match[str]) -> str:
    folder = RESULTS / figure.group(1)
    return f"{figure.group(0)}\n\n*{caption(folder)}*\n" if (folder / RUNS).exists() else figure.group(0)


def generated(name: str) -> str:
    """A table of the reference by its name."""
    return GENERATED[name]()


def outside(markdown: str, page: str) -> set[str]:
    """The files outside docs/ that a page links to, relative to the repository."""
    targets = {_in_repository(target, page) for _, target in LINK.findall(markdown)}
    return {target for target in targets if not target.startswith("docs/") and not target.startswith(FOLDER)}


def _in_repository(target: str, page: str) -> str:
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))


def brought(path: str) -> str:
    """Where the site has a file of the repository: pictures and pages as they are, other text as browsers show it."""
    suffix = "" if Path(path).suffix in PICTURES | {".md"} else ".txt"
    return f"{FOLDER}/{path}{suffix}"


def _links(markdown: str, page: str) -> str:
    """Links to files outside docs/ as links to what the site has of them."""

    def rewritten(link: re.Match[str]) -> str:
        path = _in_repository(link.group(2), page)
        if page.startswith(FOLDER) or path.startswith("docs/"):
            return link.group(0)
        return link.group(1) + posixpath.relpath(brought(path), posixpath.dirname(page) or ".")

    return LINK.sub(rewritten, markdown)


def for_python_markdown(markdown: str) -> str:
    """Four spaces before what belongs to an item of a list, and an empty line after a comment."""
    lines, fenced = [], False
    for line in markdown.splitlines():
        fenced ^= line.startswith("```")
        lines.append(re.sub(r"^ {2,3}(?=\S)", "    ", line) if not fenced else line)
    text = re.sub(r"^(<!-- .* -->)\n(?=\S)", r"\1\n\n", "\n".join(lines), flags=re.MULTILINE)
    return re.sub(r"^(?=\S)(?!- |\d+\. |\||<|#|```)(.*)\n(?=- \S)", r"\1\n\n", text, flags=re.MULTILINE)
