"""What is known of a file: a source's facts, a finished one's, and how large a source may be."""

from dataclasses import dataclass
from fractions import Fraction

#: ffmpeg's names of PQ and HLG.
HDR_TRANSFERS = ("smpte2084", "arib-std-b67")


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
        primaries, transfer: ffmpeg's names, with a default where the file has no tag; what is not
            BT.709's is brought to it.
        gray: True where the file has luma alone.
        is_rgb: True where the file has red, green and blue.
        video_stream: the number of the picture that is used, among the file's streams.
        audio_track: the number of the sound track that is used, among all of them.
        warning: what is lost of the file although it is exported; None where nothing is.
        turns: False where its display angle is no right angle, so that players ignore it.
        interlaced: True where a frame is two fields, which are made one picture.
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
    primaries: str = "bt709"
    transfer: str = "bt709"
    gray: bool = False
    is_rgb: bool = False
    turns: bool = True
    video_stream: int = 0
    audio_track: int = 0
    warning: str | None = None
    interlaced: bool = False
    alpha: bool = False
    alpha_decoder: str | None = None

    @property
    def hdr(self) -> bool:
        """True where the light is PQ or HLG, which is tone-mapped."""
        return self.transfer in HDR_TRANSFERS

    @property
    def wide_gamut(self) -> bool:
        """True where the primaries are BT.2020 or P3, which are brought to BT.709."""
        return self.primaries != "bt709"


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
