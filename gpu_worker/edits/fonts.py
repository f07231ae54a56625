"""Which font draws a character: Open Sans from its wheel, then the operator's folder, then whatever
the system has.
"""

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import structlog
from fontTools.ttLib import TTFont
from PIL import ImageFont

log = structlog.get_logger(__name__)

SYSTEM_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".fonts")


class Fonts:
    """Fonts in the order in which they are tried.

    Args:
        folder: the operator's own fonts, tried before the system's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folders = (*([folder] if folder else []), *SYSTEM_FOLDERS)

    def runs(self, text: str, size: float, bold: bool) -> list[tuple[str, ImageFont.FreeTypeFont]]:
        """Splits one line into stretches that one font can draw; what none can is drawn as the
        first font's box.
        """
        runs: list[tuple[str, Path]] = []
        for character in text:
            path = self._font_for(character, bold, runs[-1][1] if runs else None)
            if runs and runs[-1][1] == path:
                runs[-1] = (runs[-1][0] + character, path)
            else:
                runs.append((character, path))
        runs = _neutral_ends(runs, _open_sans(bold))
        return [(stretch, _opened(path, size)) for stretch, path in runs]

    def _font_for(self, character: str, bold: bool, current: Path | None) -> Path:
        first = _open_sans(bold)
        if (
            current is not None
            and current != first
            and not character.isalnum()
            and ord(character) in _covered(current)
        ):
            # A space between two words of another script stays with them.
            return current
        for path in self._candidates(bold):
            if ord(character) in _covered(path):
                return path
        _note_missing(character)
        return first

    def _candidates(self, bold: bool) -> Iterator[Path]:
        yield _open_sans(bold)
        for folder in self._folders:
            yield from _fonts_in(folder, bold)


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
