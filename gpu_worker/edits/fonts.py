"""Which font draws which part of a line: Open Sans from its wheel, then the operator's folder, then
whatever the system has.
"""

import functools
import importlib.util
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from fontTools.ttLib import TTFont
from PIL import ImageFont

from gpu_worker.edits.bidi import from_left, levels

log = structlog.get_logger(__name__)

SYSTEM_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".fonts")


#: Unicode's categories of control characters and of halves of a pair.
_UNDRAWN = ("Cc", "Cs")
_JOINER = "\u200d"
_INVISIBLE = frozenset((_JOINER, "\u200c", "\ufe0e", "\ufe0f", "\u200e", "\u200f"))
_SKIN = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
#: Codes that embed, override or isolate a direction: other programs put them around names.
_DIRECTIONS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
#: Asks for the coloured form of a character. These have it anyway: pictographs, and wide symbols.
_COLOURED, _PICTOGRAPHS = "\ufe0f", range(0x1F000, 0x1FB00)
#: Tables of fonts with coloured glyphs (OpenType).
_COLOUR_TABLES = frozenset(("CBDT", "COLR", "sbix"))


@dataclass(frozen=True)
class Run:
    """A part of a line that one font draws in one direction.

    Attributes:
        goes_left: True for right to left.
        scale: the size in which it is shown, in that of the font: a font of bitmaps has one size.
        is_coloured: True where the font has glyphs in colour.
    """

    text: str
    font: ImageFont.FreeTypeFont
    goes_left: bool = False
    scale: float = 1.0
    is_coloured: bool = False

    @property
    def width(self) -> float:
        """Its width in pixels."""
        return self.scale * self.font.getlength(self.text, direction=self.direction)

    @property
    def direction(self) -> str:
        """Pillow's name of its direction."""
        return "rtl" if self.goes_left else "ltr"


class Fonts:
    """Fonts in the order in which they are tried.

    Args:
        folder: the operator's own fonts, tried before the system's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folders = (*([folder] if folder else []), *SYSTEM_FOLDERS)

    def runs(self, text: str, size: float, bold: bool) -> list[Run]:
        """Splits one line into runs, from left to right; what no font has is drawn as the first
        font's box.
        """
        embedded, at = levels(text), 0
        parts: list[tuple[str, Path, int]] = []
        for cluster in clusters(text):
            path = self._font_for(cluster, bold, parts[-1][1] if parts else None)
            level = embedded[at]
            at += len(cluster)
            if parts and parts[-1][1:] == (path, level):
                parts[-1] = (parts[-1][0] + cluster, path, level)
            else:
                parts.append((cluster, path, level))
        runs = [(_run(part, path, size, level), level) for part, path, level in parts]
        return from_left(runs)

    def _font_for(self, cluster: str, bold: bool, current: Path | None) -> Path:
        first = _open_sans(bold)
        if (
            current is not None
            and current != first
            and not _is_coloured(current)
            and not cluster[0].isalnum()
            and _covers(current, cluster)
        ):
            # A space between two words of another script stays with them.
            return current
        for wanted in (cluster, cluster[0]):
            for path in self._candidates(bold, _is_pictograph(cluster)):
                if _covers(path, wanted):
                    return path
        _note_missing(cluster[0])
        return first

    def _candidates(self, bold: bool, coloured: bool) -> Iterator[Path]:
        """Yields the fonts; those in colour first or last."""
        for wanted in (coloured, not coloured):
            if not wanted:
                yield _open_sans(bold)
            for folder in self._folders:
                for path in _fonts_in(folder, bold):
                    if _is_coloured(path) == wanted:
                        yield path


def drawable(text: str) -> str:
    """Returns a text as it is drawn: characters composed (Unicode's NFC), and spaces in the place
    of control characters, which no font has. Line breaks stay; codes of direction go.
    """
    composed = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    return "".join(
        " " if unicodedata.category(character) in _UNDRAWN and character != "\n" else character
        for character in composed
        if character not in _DIRECTIONS
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


def _is_pictograph(cluster: str) -> bool:
    """Whether a character is drawn in colour where a font has it so."""
    return _COLOURED in cluster or any(
        ord(one) in _PICTOGRAPHS
        or (unicodedata.category(one) == "So" and unicodedata.east_asian_width(one) == "W")
        for one in cluster
    )


def _run(text: str, path: Path, size: float, level: int) -> Run:
    font = _opened(path, size)
    return Run(text, font, level % 2 == 1, size / font.size, _is_coloured(path))


@functools.lru_cache(maxsize=64)
def _opened(path: Path, size: float) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(str(path), size)
    except OSError:
        # Bitmaps of another size.
        return ImageFont.truetype(str(path), _bitmap_size(path))


@functools.cache
def _bitmap_size(path: Path) -> int:
    with path.open("rb") as file, TTFont(file, fontNumber=0, lazy=True) as font:
        return max(int(strike.bitmapSizeTable.ppemY) for strike in font["CBLC"].strikes)


@functools.cache
def _is_coloured(path: Path) -> bool:
    """Whether a font has coloured glyphs; by its name first, so that not each file is read."""
    if "emoji" not in path.name.lower():
        return False
    try:
        with path.open("rb") as file, TTFont(file, fontNumber=0, lazy=True) as font:
            return not _COLOUR_TABLES.isdisjoint(font.keys())
    except Exception as error:  # noqa: BLE001  # as in _covered
        log.warning("font_unreadable", path=str(path), error=repr(error))
        return False


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
