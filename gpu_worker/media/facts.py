"""What is known of a file: a source's facts, a finished one's, and how large a source may be."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Limits:
    """How large a source may be; the worker's settings say otherwise."""

    pixels: int = 8192 * 4320
    seconds: float = 6 * 3600
    streams: int = 32


#: Where the worker's settings say nothing.
DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class SourceFacts:
    """A source as a viewer sees it.

    Attributes:
        width, height: of the upright picture with square pixels, exactly as decode.py delivers it.
        fps: frames a second; for a variable rate, the rate that holds every frame.
        duration_seconds: when the picture ends, counted from the beginning of the file.
        matrix: ffmpeg's name of the colour matrix that the pixels are in, `bt709` or `bt601` where
            untagged.
        full_range: True for 0 to 255 luma.
        wide_gamut: True where the primaries are BT.2020, which are brought to BT.709.
        hdr: True where the light is PQ or HLG, which is tone-mapped.
        interlaced: True where a frame is two fields, which are made one picture.
        seekable: False for transport streams and their like: without an index, a cut in them misses
            key frames.
        alpha_decoder: the decoder that keeps the picture's transparency, where another would drop
            it.
        alpha: True where parts of the picture are transparent; they become black.
    """

    width: int
    height: int
    fps: Fraction
    duration_seconds: float
    rotation_degrees: int
    video_codec: str
    audio_codec: str | None
    matrix: str
    full_range: bool
    wide_gamut: bool = False
    hdr: bool = False
    interlaced: bool = False
    alpha: bool = False
    alpha_decoder: str | None = None
    seekable: bool = True


@dataclass(frozen=True)
class FileFacts:
    """A finished file, counted packet by packet."""

    width: int
    height: int
    fps: float
    frames: int
    duration_seconds: float
    video_codec: str
    audio_codec: str | None
