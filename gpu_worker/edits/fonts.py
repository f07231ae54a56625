"""Which font draws which part of a line: Open Sans from its wheel, then the operator's folder, then
whatever the system has.
"""

import functools
import importlib.util
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import structlog
from fontTools.ttLib import TTFont
from PIL import ImageFont

log = structlog.get_logger(__name__)

SYSTEM_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".fonts")


#: Unicode's bidirectional classes of letters and digits that go from right to left, and all classes
#: that give a line its direction.
_RIGHT_TO_LEFT, _STRONG = frozenset(("R", "AL", "AN")), ("L", "R", "AL")
#: Unicode's categories of control characters and of halves of a pair.
_UNDRAWN = ("Cc", "Cs")
_JOINER = "\u200d"
_INVISIBLE = frozenset((_JOINER, "\u200c", "\ufe0e", "\ufe0f", "\u200e", "\u200f"))
_SKIN = frozenset(map(chr, range(0x1F3FB, 0x1F400)))


class Fonts:
    """Fonts in the order in which they are tried.

    Args:
        folder: the operator's own fonts, tried before the system's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folders = (*([folder] if folder else []), *SYSTEM_FOLDERS)

    def runs(self, text: str, size: float, bold: bool) -> list[tuple[str, ImageFont.FreeTypeFont]]:
        """Splits one line into stretches that one font can draw, from left to right; what none can
        is drawn as the first font's box.

        The layout engine orders a stretch by the bidirectional algorithm, so a line that goes from
        right to left is one stretch where some font has all of it.
        """
        directions = [unicodedata.bidirectional(character) for character in text]
        goes_left = not _RIGHT_TO_LEFT.isdisjoint(directions)
        if goes_left and (whole := self._font_for_all(text, bold)) is not None:
            return [(text, _opened(whole, size))]
        runs: list[tuple[str, Path]] = []
        for cluster in clusters(text):
            path = self._font_for(cluster, bold, runs[-1][1] if runs else None)
            if runs and runs[-1][1] == path:
                runs[-1] = (runs[-1][0] + cluster, path)
            else:
                runs.append((cluster, path))
        runs = _neutral_ends(runs, _open_sans(bold))
        first_strong = next((one for one in directions if one in _STRONG), "L")
        if first_strong in _RIGHT_TO_LEFT:
            runs.reverse()
        return [(stretch, _opened(path, size)) for stretch, path in runs]

    def _font_for_all(self, text: str, bold: bool) -> Path | None:
        return next((path for path in self._candidates(bold) if _covers(path, text)), None)

    def _font_for(self, cluster: str, bold: bool, current: Path | None) -> Path:
        first = _open_sans(bold)
        if (
            current is not None
            and current != first
            and not cluster[0].isalnum()
            and _covers(current, cluster)
        ):
            # A space between two words of another script stays with them.
            return current
        for path in self._candidates(bold):
            if _covers(path, cluster):
                return path
        for path in self._candidates(bold):
            if _covers(path, cluster[0]):
                return path
        _note_missing(cluster[0])
        return first

    def _candidates(self, bold: bool) -> Iterator[Path]:
        yield _open_sans(bold)
        for folder in self._folders:
            yield from _fonts_in(folder, bold)


def drawable(text: str) -> str:
    """Returns a text as it is drawn: characters composed (Unicode's NFC), and spaces in the place
    of control characters, which no font has. Line breaks stay.
    """
    composed = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    return "".join(
        " " if unicodedata.category(character) in _UNDRAWN and character != "\n" else character
        for character in composed
    )


def one_line(text: str) -> str:
    """Returns a text as it is drawn in one line."""
    return drawable(" ".join(text.splitlines()))


def clusters(text: str) -> Iterator[str]:
    """Yields what a reader takes for one character: a letter with its marks, a joined emoji.

    A part of the extended grapheme clusters of Unicode's annex 29: the rest is one glyph anyway.
    """
    cluster = ""
    for character in text:
        joins = cluster.endswith(_JOINER) or unicodedata.category(character).startswith("M")
        if cluster and (joins or character == _JOINER or character in _SKIN):
            cluster += character
            continue
        if cluster:
            yield cluster
        cluster = character
    if cluster:
        yield cluster


def _covers(path: Path, text: str) -> bool:
    """Whether a font has all characters of a text; joiners and selectors have no glyph."""
    known = _covered(path)
    return all(ord(character) in known or character in _INVISIBLE for character in text)


@functools.lru_cache(maxsize=4096)
def _note_missing(character: str) -> None:
    """Logs a character once: a text is measured many times."""
    log.warning("no_glyph", character=f"U+{ord(character):04X}")


@functools.lru_cache(maxsize=64)
def _opened(path: Path, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def _neutral_ends(runs: list[tuple[str, Path]], first: Path) -> list[tuple[str, Path]]:
    """Gives spaces and stops at the end of another script's stretch to the main one, whose
    direction they have.
    """
    settled: list[tuple[str, Path]] = []
    for stretch, path in runs:
        end = len(stretch)
        while path != first and end > 1 and not stretch[end - 1].isalnum():
            if ord(stretch[end - 1]) not in _covered(first):
                break
            end -= 1
        settled += [
            (part, font) for part, font in ((stretch[:end], path), (stretch[end:], first)) if part
        ]
    return settled


@functools.cache
def _open_sans(bold: bool) -> Path:
    spec = importlib.util.find_spec("ttf_opensans")
    # A dependency of ours.
    assert spec is not None  # noqa: S101
    assert spec.submodule_search_locations is not None  # noqa: S101
    weight = "Bold" if bold else "Regular"
    return Path(spec.submodule_search_locations[0]) / "ttf" / f"OpenSans-{weight}.ttf"


@functools.cache
def _fonts_in(folder: Path, bold: bool) -> tuple[Path, ...]:
    """Returns the outline fonts below a folder: upright before slanted, of the wanted weight before
    others.
    """
    found = [path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc")]
    # Bitmap fonts come in one size, which Pillow cannot scale.
    found = [path for path in found if "ColorEmoji" not in path.name]

    def unlike(path: Path) -> tuple[bool, bool, bool, str]:
        name = path.stem.lower()
        return (
            "italic" in name or "oblique" in name,
            "mono" in name,
            ("bold" in name) != bold,
            str(path),
        )

    return tuple(sorted(found, key=unlike))


@functools.cache
def _covered(path: Path) -> frozenset[int]:
    """Returns the characters that a font has; none where the file cannot be read."""
    try:
        with path.open("rb") as file, TTFont(file, fontNumber=0, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    # Whatever is wrong with a stranger's font, another may do.
    except Exception as error:  # noqa: BLE001
        log.warning("font_unreadable", path=str(path), error=repr(error))
        return frozenset()
