"""Ids that follow from others: the same each time, and such that nobody else can have chosen
them.
"""

import uuid

import pytest

from broker import ids


def test_a_derived_id_is_the_same_each_time():
    """And another one for each name, each user and each purpose."""
    names = [("export", "a", "1"), ("export", "b", "1"), ("export", "a", "2"), ("retry", "1")]
    made = [ids.derived(*name) for name in names]
    assert made == [ids.derived(*name) for name in names]
    assert len(set(made)) == len(names)


@pytest.mark.abuse
def test_no_derived_id_can_be_chosen():
    """In no spelling; UUIDs of all other versions can, also those that a client derives itself."""
    for number in range(200):
        known = uuid.UUID(ids.derived("retry", str(number)))
        assert (known.version, known.variant) == (8, uuid.RFC_4122)
        for text in (str(known), known.hex, str(known).upper(), f"{{{known}}}", known.urn):
            with pytest.raises(ValueError, match="version 8"):
                ids.chosen(text)
    for known in (uuid.uuid1(), uuid.uuid4(), uuid.uuid5(uuid.NAMESPACE_URL, "mine")):
        assert ids.chosen(str(known).upper()) == str(known)
