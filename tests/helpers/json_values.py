"""Random JSON, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from minihs.protocol.canonical_json import INTEGER_MAX

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-INTEGER_MAX, INTEGER_MAX), TEXT)
CANONICAL_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
CANONICAL_OBJECTS = st.dictionaries(TEXT, CANONICAL_VALUES, max_size=5)
