"""No system without a card, and a card says what is declared and what was measured."""

from pathlib import Path

import pytest

from scripts.docs_site import cards

NODES = cards.systems()


@pytest.mark.parametrize("key", NODES)
def test_every_system_has_a_card_of_what_it_declares(key):
    text = cards.card(key, NODES[key], [{"routing": "here", "over EP": "1"}], "measured nowhere")
    assert text.startswith(f"# {NODES[key]['about']['label']}\n") and f"`system={key}`: " in text
    assert "| Source | " in text and "| here | 1 |" in text and "measured nowhere" in text
    assert "over EP" in text and "tokens dropped" not in text, "a column that no row has"
    assert "{{" not in text and "_target_" not in text and "not said" not in text
    assert f"]({key}.md)" in cards.index()


def test_cards_have_the_numbers_of_the_league():
    pages = cards.pages()
    assert pages.keys() == NODES.keys()
    assert "| Paper's routing, 128 experts | " in pages["ep"] and "results/sample-league" in pages["ep"]


def test_a_system_from_elsewhere_has_a_card(tmp_path: Path, monkeypatch):
    (tmp_path / "system").mkdir()
    (tmp_path / "system/mine.yaml").write_text("_target_: systems.dense.Dense\nname: mine\nengine: auto\n")
    monkeypatch.setenv("CONFIG_DIR", str(tmp_path))
    assert "- [mine](mine.md): " in cards.index() and "| Source | not said |" in cards.pages()["mine"]
