"""The reference of the configuration as Markdown: every key of conf/config.yaml and of every group."""

from scripts.docs_site.fields import group_meaning
from scripts.docs_site.keys import Key, group_keys, groups, options, top_level

LONGEST = 40  # characters of a value that a table shows
FEW = 4  # options whose names stand beside a value
OWN = ("about",)  # keys that no two files have alike
OF_EACH_FILE = ("experiment", "panel")  # groups whose options differ in all values: they are listed by option


def configuration() -> str:
    """All tables: the keys that stand on their own first, then each group."""
    own = "\n".join(["## On their own", "", *_key_table("", top_level())])
    return "\n\n".join([own, *map(_group, groups())])


def _group(group: str) -> str:
    about = group_meaning(group)
    return "\n".join([f"## {group}", "", about, "", *_option_table(group), "", *_key_table(group, group_keys(group))])


def _option_table(group: str) -> list[str]:
    rows = [f"| `{option.name}` | {_cell(option.about)} |" for option in options(group)]
    return [f"| `{group}=` | what it is |" if group != "panel" else "| panel | what it is |", "|---|---|", *rows]


def _key_table(group: str, keys: list[Key]) -> list[str]:
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    shown = [key for key in keys if key.name != "name"]
    return [*head, *(_row(group, key) for key in shown)] if shown else ["It has no keys."]


def _row(group: str, key: Key) -> str:
    name = key.name if group in ("", "panel") else f"{group}.{key.name}"
    plus = " (add with `+`)" if key.added else ""
    return f"| `{name}`{plus} | {_types(key)} | {_values(group, key)} | {_cell(sentence(key.meaning))} |"


def _types(key: Key) -> str:
    kinds = {part for kind in key.types for part in kind.split(" or ")} - {""}
    if "float" in kinds:
        kinds -= {"int"}
    return " or ".join(sorted(kinds, key=lambda kind: (kind == "null", kind)))


def _values(group: str, key: Key) -> str:
    """The values in the files, each with the options that have it; the value of most has none."""
    if group in OF_EACH_FILE or key.name in OWN:
        return "of each file"
    by_value: dict[str, list[str]] = {}
    for option, value in key.values.items():
        by_value.setdefault(_shown(value), []).append(option)
    most = max(by_value, key=lambda value: len(by_value[value]))
    if len(by_value[most]) > FEW or (
        len(by_value) == 1 and len(by_value[most]) == len(options(group) if group else [""])
    ):
        others = [f"{value} ({', '.join(names)})" for value, names in by_value.items() if value != most]
        return "; ".join([most, *others])
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in by_value.items())


def sentence(text: str) -> str:
    """A comment as a sentence; one that begins with a value stays as it is."""
    first = text.partition(" ")[0]
    if first.isalpha() and first.islower() and first not in ("null", "contiguous", "offline"):
        text = text[0].upper() + text[1:]
    return text if not text or text.endswith((".", "?")) else f"{text}."


def _shown(value: str) -> str:
    if not value:
        return "required"
    return f"`{_cell(value if len(value) <= LONGEST else value[:LONGEST].rstrip() + ' ...')}`"


def _cell(text: str) -> str:
    """Text that a table can hold."""
    return text.replace("|", "or")
