"""How a large file is cut into parts."""

import itertools

import pytest

from broker.services import uploads


@pytest.mark.parametrize("size", [1, 16 * 2**20, 160 * 2**30, 5 * 2**40])
def test_parts_cover_a_file_of_any_size(size):
    """In order, of one size but the last, 10,000 at most."""
    upload = uploads.UploadRow(
        id="u", user_id="u", key="k", content_type="video/mp4", bytes=size, created_at=0
    )
    plan = uploads._plan(upload)
    lengths = [length for _, _, length in plan]
    assert [number for number, _, _ in plan] == list(range(1, len(plan) + 1))
    assert [offset for _, offset, _ in plan] == [0, *itertools.accumulate(lengths)][:-1]
    assert (sum(lengths), len(set(lengths[:-1])) <= 1, len(plan) <= 10_000) == (size, True, True)
