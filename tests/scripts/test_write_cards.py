"""scripts/write_cards.py: no system without a card, and a card says what is declared and what was measured."""

from pathlib import Path

import pytest
import yaml

from scripts.write_cards import FOLDER, ROOT, card, index

NODES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "conf/system").glob("*.yaml"))}


@pytest.mark.parametrize("key", NODES)
def test_every_system_has_a_card_of_what_it_declares(key):
    text = card(key, NODES[key], [{"routing": "here", "over EP": "1"}], "measured nowhere")
    assert text.startswith("# ") and f"`system={key}`: " in text
    assert "| Source | " in text and "| here | 1 |" in text and "measured nowhere" in text
    assert "over EP" in text and "tokens dropped" not in text, "a column that no row has"
    assert "{{" not in text and "_target_" not in text


def test_the_cards_that_are_kept_are_of_the_systems_that_there_are():
    kept = {path.stem for path in Path(FOLDER).glob("*.md")} - {"README"}
    assert kept == set(NODES) == set(yaml.safe_load((FOLDER / "cards.yaml").read_text()))
    assert all(f"]({key}.md)" in index(NODES) for key in NODES)
