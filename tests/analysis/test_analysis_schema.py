"""What documents have in common is stored once, and comes back exactly."""

import json

from hypothesis import given
from hypothesis import strategies as st

from analysis.schema import join_shared, split_shared

values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text("xyz", min_size=1, max_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)
documents = st.dictionaries(st.text("xyz", min_size=1, max_size=1), values, max_size=3)


@given(st.dictionaries(st.text("pq", min_size=1, max_size=2), documents, max_size=4))
def test_documents_come_back_as_they_were(given_documents):
    packed = json.loads(json.dumps(split_shared(given_documents)))
    # As text, in which 1, 1.0 and True differ.
    assert json.dumps(join_shared(packed), sort_keys=True) == json.dumps(given_documents, sort_keys=True)


def test_what_is_alike_is_stored_once():
    packed = split_shared({"a": {"x": 1, "y": {"z": 2, "w": 0}}, "b": {"x": 1, "y": {"z": 3, "w": 0}}})
    assert packed["shared"] == {"x": 1, "y": {"w": 0}} and packed["objects"] == [{"z": 2}, {"z": 3}]
    assert packed["runs"] == {"a": {"objects": {"y": 0}}, "b": {"objects": {"y": 1}}}


def test_an_object_of_several_is_stored_once():
    cores = {"a": 2, "b": 4, "c": 4}
    packed = split_shared({name: {"machine": {"cores": number}, "n": 1} for name, number in cores.items()})
    assert packed["objects"] == [{"cores": 2}, {"cores": 4}] and packed["runs"]["b"] == packed["runs"]["c"]
