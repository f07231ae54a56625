"""Which keys there may be: below the user's folder, of a length that the bucket takes, and harmless
to look at.
"""

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.keys import ObjectKey
from schemas.uploads import UploadRequest

KEY = TypeAdapter(ObjectKey)
STEERING = [
    *map(chr, range(32)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
]


@pytest.mark.abuse
@pytest.mark.parametrize("character", STEERING, ids=ascii)
def test_what_steers_a_terminal_or_turns_text_around_is_in_no_name(character):
    """Control characters, those of the C1 set among them, and overrides of the direction: in a key
    and in a file's name.
    """
    with pytest.raises(ValidationError):
        KEY.validate_python(f"a{character}b.mp4")
    with pytest.raises(ValidationError):
        UploadRequest(filename=f"a{character}b.mp4")


@pytest.mark.parametrize(
    "name", ["größe.mp4", "שיר.mp4", "日本 🎬.mp4", "a b\u200f.mp4", "a%0d.mp4"]
)
def test_names_of_any_language_are_fine(name):
    """Also those with marks that belong to their writing."""
    assert KEY.validate_python(f"input/{name}") == f"input/{name}"
    assert UploadRequest(filename=name).filename == name


@pytest.mark.abuse
@pytest.mark.parametrize(
    ("key", "fits"),
    [
        ("é" * 127, True),
        ("é" * 128, False),
        ("é/" * 255 + "é", True),
        ("日/" * 239 + "日", True),
        ("日/" * 240 + "日", False),
        ("日" * 85 + "/a", True),
        ("日" * 86 + "/a", False),
    ],
)
def test_a_key_is_measured_in_bytes(key, fits):
    """A bucket takes 1024 with the user's folder, and the embedded store 255 between two `/`."""
    if fits:
        assert KEY.validate_python(key) == key
    else:
        with pytest.raises(ValidationError, match="bytes in UTF-8"):
            KEY.validate_python(key)
