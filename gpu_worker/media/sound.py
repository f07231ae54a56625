"""The sound of an export: made beside its picture, by an ffmpeg of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpu_worker.errors import FfmpegFailed, InvalidMedia
from gpu_worker.host.guard import Guard
from gpu_worker.media.ffmpeg import INPUT_OPTIONS, Ffmpeg, run_ffmpeg

BITRATE = "192k"
#: What all clips' sound is brought to before it is joined.
SAMPLE_RATE, CHANNELS, LAYOUT = 48_000, 2, "stereo"
#: The name of a filter graph's output.
SOUND = "sound"
#: A part of ffmpeg's error for channels without positions.
_UNKNOWN_LAYOUT = "Rematrix is needed"
_DAMAGED = "The sound is damaged and cannot be decoded."


@dataclass(frozen=True)
class Heard:
    """A stretch of a sound track of a file.

    Attributes:
        track: its number among the file's sound tracks.
        start, end: in seconds from the beginning of the file.
    """

    path: Path
    track: int
    start: float
    end: float

    def arguments(self) -> list[str]:
        """Returns ffmpeg's options of the input; the file's other streams are not even read."""
        seek = ["-ss", f"{self.start:.6f}"] if self.start else []
        return [*INPUT_OPTIONS, *seek, "-vn", "-sn", "-dn", "-i", str(self.path)]


@dataclass(frozen=True)
class Sound:
    """Stretches of sound, and ffmpeg's filter graph that makes SOUND of them.

    Attributes:
        graph: has `{0}`, `{1}`, … for the streams.
    """

    heard: tuple[Heard, ...]
    graph: str


class SoundTrack:
    """A sound track in the making."""

    def __init__(self, sound: Sound, path: Path, guard: Guard, ffmpeg: Ffmpeg) -> None:
        self._sound, self._path, self._guard = sound, path, guard
        self._ffmpeg: Ffmpeg | None = ffmpeg

    def check(self) -> None:
        """Raises what `finish` would, where that is clear by now."""
        if self._ffmpeg is not None and self._ffmpeg.has_ended:
            self.finish()

    def finish(self) -> None:
        """Waits for the end of the track.

        Raises:
            InvalidMedia: most of the sound cannot be decoded.
        """
        ffmpeg, self._ffmpeg = self._ffmpeg, None
        if ffmpeg is None:
            return
        try:
            ffmpeg.finish()
        except FfmpegFailed:
            # Some filters refuse a rate or a layout that changes in mid-stream, and what comes out
            # of damaged packets.
            _make_of_steady(self._sound, self._path, self._guard)


@contextmanager
def sound_track(sound: Sound, path: Path, guard: Guard) -> Iterator[SoundTrack]:
    """Writes AAC to `path`, an M4A file, while entered."""
    with run_ffmpeg(_arguments(sound, path), guard) as ffmpeg:
        yield SoundTrack(sound, path, guard, ffmpeg)


def _arguments(sound: Sound, path: Path) -> list[str]:
    # In a file, since an argument may have 128 KiB.
    graph = path.with_suffix(".graph")
    labels = (f"{number}:a:{heard.track}" for number, heard in enumerate(sound.heard))
    graph.write_text(sound.graph.format(*labels))
    # A new graph in mid-stream would begin at 0 again, so a track that changes is an error.
    inputs = [
        option for heard in sound.heard for option in ("-reinit_filter", "0", *heard.arguments())
    ]
    outputs = ["-map", f"[{SOUND}]", "-c:a", "aac", "-b:a", BITRATE, "-f", "ipod"]
    return [*inputs, "-/filter_complex", str(graph), *outputs, "-y", str(path)]


def _make_of_steady(sound: Sound, path: Path, guard: Guard) -> None:
    """Makes the track of stretches that are decoded first, to one rate and one layout."""
    steady = tuple(
        _steady(heard, path.with_suffix(f".{number}.mka"), guard)
        for number, heard in enumerate(sound.heard)
    )
    # Else a file whose sound begins after 0 would be moved to begin there.
    arguments = ["-copyts", *_arguments(Sound(steady, sound.graph), path)]
    with run_ffmpeg(arguments, guard) as ffmpeg:
        ffmpeg.finish()
    for heard in steady:
        heard.path.unlink()


def _steady(heard: Heard, path: Path, guard: Guard) -> Heard:
    try:
        return _decoded(heard, path, [], guard)
    except FfmpegFailed as error:
        if _UNKNOWN_LAYOUT not in error.detail:
            raise InvalidMedia(_DAMAGED, error.detail) from error
    try:
        return _decoded(heard, path, ["-af", "pan=stereo|c0=c0|c1=c1"], guard)
    except FfmpegFailed as error:
        raise InvalidMedia(_DAMAGED, error.detail) from error


def _decoded(heard: Heard, path: Path, mix: list[str], guard: Guard) -> Heard:
    length = heard.end - heard.start
    cut = ["-t", f"{length:.6f}", "-map", f"0:a:{heard.track}"]
    form = ["-c:a", "pcm_f32le", "-ar", str(SAMPLE_RATE), "-ac", str(CHANNELS)]
    with run_ffmpeg([*heard.arguments(), *cut, *mix, *form, "-y", str(path)], guard) as ffmpeg:
        ffmpeg.finish()
    return Heard(path, 0, 0.0, length)
