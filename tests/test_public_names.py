"""What is public is said, exists, and is documented."""

from pathlib import Path

import kedge

REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"


def test_all_is_sorted_and_whole():
    assert kedge.__all__ == sorted(set(kedge.__all__))
    assert set(kedge._HOMES) == set(kedge.__all__)


def test_every_public_name_exists_with_a_docstring():
    for name in kedge.__all__:
        assert getattr(kedge, name).__doc__, name


def test_every_public_name_is_in_the_reference():
    text = REFERENCE.read_text("utf-8")
    assert [name for name in kedge.__all__ if f"`{name}" not in text and f"kedge.{name}" not in text] == []
