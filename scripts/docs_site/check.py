"""Check a built site: `python -m scripts.docs_site.check site` names every link, anchor and picture that leads nowhere.

It also names what would be fetched from another host, and Markdown that was not understood.
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
# A table, a fence or a list that was left as text.
UNREAD = re.compile(r"<(?:p|li)\b[^>]*>\s*(?:\||```|- )|^(?:\||```)", re.MULTILINE)


class Page(HTMLParser):
    """The addresses that a page names, each with its tag and attribute, and its own anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[tuple[str, str, str]] = []
        self.anchors: set[str] = {""}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.addresses.append((tag, name, value))
            if name in ("id", "name") and value:
                self.anchors.add(value)


@cache
def read(path: Path) -> Page:
    """A page of the site."""
    page = Page()
    page.feed(path.read_text())
    return page


def faults(site: Path) -> Iterator[str]:
    """What is wrong with a built site, one sentence each."""
    for path in sorted(site.rglob("*.html")):
        where = path.relative_to(site)
        if where.name == "404.html":  # its links are for a server's root
            continue
        for tag, name, address in read(path).addresses:
            if fault := _fault(path, tag, name, address):
                yield f"{where}: {address} {fault}"
        for text in UNREAD.findall(re.sub(r"<pre.*?</pre>", "", path.read_text(), flags=re.DOTALL)):
            yield f"{where}: {text!r} was left as text"


def _fault(path: Path, tag: str, name: str, address: str) -> str | None:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        remote = parts.scheme in ("http", "https", "") and (tag, name) in FETCHED
        return "is fetched from another host" if remote else None
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return "does not exist"
    if target.suffix == ".html" and unquote(parts.fragment) not in read(target).anchors:
        return "has no such anchor"
    return None


if __name__ == "__main__":
    found = list(faults(Path(sys.argv[1]).resolve()))
    print("\n".join(found) or f"{sys.argv[1]}: every link, anchor and picture is there")
    sys.exit(bool(found))
