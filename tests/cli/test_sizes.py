"""Sizes as people write them."""

from __future__ import annotations

import pytest

from fastmerge.sizes import parse_size, show_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4GiB", 2**32), ("500MB", 5 * 10**8), ("1.5 kib", 1536), ("2T", 2 * 10**12), ("12", 12), (7, 7), ("3B", 3)],
)
def test_parse_size(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "much", "4 GiBs", "-1", "0", "1e9", "GiB", "0.1"])
def test_parse_size_refuses(text):
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (1234567, "1.23 MB"), (5e12, "5 TB")]
)
def test_show_size(nbytes, text):
    assert show_size(nbytes) == text
