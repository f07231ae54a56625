"""The sound's own ffmpeg."""

import numpy as np
import pytest

from gpu_worker.errors import InvalidMedia
from gpu_worker.host.guard import Guard
from gpu_worker.media.sound import SOUND, Heard, Sound, sound_track
from tests.gpu_worker.footage import make, sound

TONE = ("-f", "lavfi", "-i", "sine=1000:d=2")
LOUD = f"[{{0}}]volume=2[{SOUND}]"


def made(path, source, graph=LOUD):
    with sound_track(Sound((Heard(source, 0, 0.5, 1.5),), graph), path, Guard()) as track:
        track.finish()
    return sound(path)


def test_the_graph_gets_each_stretch_from_its_beginning_on(tmp_path):
    """A tone from 0.5 s on, with nothing before it."""
    heard = made(tmp_path / "a.m4a", make(tmp_path / "tone.m4a", *TONE))
    assert len(heard) / 48_000 == pytest.approx(1.5, abs=0.03)
    assert np.abs(heard[2400:7200]).max() > 0.2


def test_damaged_sound_is_the_files_fault(tmp_path):
    """Not one packet of it can be decoded."""
    source = make(tmp_path / "tone.m4a", *TONE)
    body = bytearray(source.read_bytes())
    begin, end = body.index(b"mdat") + 4, body.index(b"moov") - 4
    body[begin:end] = np.random.default_rng(1).bytes(end - begin)
    source.write_bytes(body)
    with pytest.raises(InvalidMedia, match="sound"):
        made(tmp_path / "a.m4a", source)


def test_a_failure_is_seen_while_the_picture_is_made(tmp_path):
    """And names what ffmpeg printed."""
    nothing = tmp_path / "nothing"
    with sound_track(Sound((Heard(nothing, 0, 0, 1),), LOUD), tmp_path / "a.m4a", Guard()) as track:
        with pytest.raises(InvalidMedia) as raised:
            while True:
                track.check()
        # Asked again, it is over.
        track.finish()
    assert "No such file" in raised.value.detail


def test_channels_without_a_place_are_heard_by_their_first_two(tmp_path):
    """Nine channels, as of a microphone for all directions: nobody says which is left."""
    tones = "|".join(["0.4*sin(6.28*440*t)"] * 9)
    pictures = ("-f", "lavfi", "-i", "color=gray:s=16x16:d=2")
    source = make(
        tmp_path / "a.mov",
        *(*pictures, "-f", "lavfi", "-i", f"aevalsrc={tones}:d=2", "-c:a", "pcm_s16le"),
    )
    assert np.abs(made(tmp_path / "a.m4a", source)[4800:-4800]).max() > 0.3
