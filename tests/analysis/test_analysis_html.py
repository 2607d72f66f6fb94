import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from analysis.report import render
from tests.analysis.synthetic import write_fig3

NAME = "<script>alert(1)</script>"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Document(HTMLParser):
    """Elements with their attributes, ids, links inside the document, and whether all that opens is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def tags(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(folder) -> tuple[str, Document]:
    render(folder, Console(quiet=True))
    text = (folder / "report.html").read_text()
    return text, Document(text)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    oom = {"state": "oom", "reason": f"Out of memory {NAME} & more", "correctness": None}
    changes = {"deepspeed_num_experts_64_1": oom}
    for launch in (0, 1):
        changes[f"moeshard_batch_size_1_{launch}"] = {"system": NAME, "engine": '"><img src=x onerror=alert(2)>'}
    folder = write_fig3(tmp_path_factory.mktemp("html") / "fig3", experts=(8, 64), batches=(1, 10), **changes)
    plan = json.loads((folder / "plan.json").read_text())
    plan["panels"][0]["title"] = f"Figure 3a {NAME}"
    plan["campaign"] = '"><b onclick="x">'
    (folder / "plan.json").write_text(json.dumps(plan))
    return report(folder)


def test_document_is_well_formed_and_has_an_outline(written):
    text, document = written
    assert text.startswith("<!doctype html>") and not document.open
    headings = [tag for tag, _ in document.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1" and headings.count("h1") == 1 and set(headings) == {"h1", "h2"}
    assert {"header", "main", "nav", "footer", "figure", "details"} <= {tag for tag, _ in document.elements}
    assert all("scope" in attributes for attributes in document.tags("th"))


def test_ids_are_unique_and_links_lead_somewhere(written):
    _, document = written
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a[name] for _, a in document.elements for name in ("href", "xlink:href") if name in a]
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)
    clipped = re.findall(r"url\(#([^)]*)\)", written[0])
    assert clipped and set(clipped) <= set(ids)


def test_nothing_is_fetched_and_nothing_runs(written):
    text, document = written
    (policy,) = [a["content"] for a in document.tags("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {
        t for t, _ in document.elements
    }
    assert not [name for _, a in document.elements for name in a if name.startswith("on") or name == "src"]
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_what_a_user_named_is_text(written):
    text, document = written
    assert NAME not in text and NAME in document.text
    assert f"Out of memory {NAME} & more" in document.text
    assert '"><b onclick="x">' in document.text and '"><img src=x onerror=alert(2)>' in document.text


def test_readable_on_a_phone_and_on_paper(written):
    text, document = written
    assert any(a.get("name") == "viewport" for a in document.tags("meta"))
    assert "@media print" in text and "prefers-color-scheme: dark" in text
    stack = re.findall(r'<div class="scroll"[^>]*>\s*<(table|svg)', text)
    assert len(stack) == len(document.tags("table")) + len(document.tags("svg"))


def test_says_what_a_reader_must_know(written):
    _, document = written
    text = document.text
    assert "Tier quick: a look, not for claims." in text and "Noise floor of" in text
    assert "1 ok, 1 oom" in text and "% of it measuring" in text and "a CPU" in text
    assert {f"V{i:02d}" for i in range(1, 25)} <= {a.get("id") for a in document.tags("details")}
    assert {a["role"] for a in document.tags("svg")} == {"img"}
    assert all(a["aria-label"] for a in document.tags("svg"))


def test_full_tier_has_no_banner(fig3):
    text, _ = report(fig3(experts=(8,), batches=(), launches=1, tier="full"))
    assert "a look, not for claims" not in text


def test_campaign_in_which_nothing_ran_has_a_report(fig3):
    cells = [f"{s}_num_experts_8_0" for s in ("deepspeed", "moeshard")] + ["moeshard_num_experts_8_0_twin"]
    _, document = report(fig3(experts=(8,), batches=(), launches=1, **dict.fromkeys(cells)))
    assert "0 of 3 measured" in document.text and "It has not run." in document.text
