"""Pieces and sound as one file: every frame at its place, nothing encoded again."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest

from gpu_worker.errors import JoinFailed
from gpu_worker.host.guard import Guard
from gpu_worker.media.encode import Quality, encode
from gpu_worker.media.join import Piece, join
from tests.gpu_worker.footage import beeps, luma, make
from tests.gpu_worker.media.test_encode import NEARLY_LOSSLESS, grey

BEEPS = "aevalsrc='if(lt(mod(t,0.5),0.1),0.8*sin(6283*t),0)':s=48000:d=1.6"


def pieces(folder, fps, borders, quality=NEARLY_LOSSLESS):
    """Encodes frames of rising gray, of which each piece has some."""
    made = []
    for first, last in itertools.pairwise(borders):
        path = folder / f"{first}.mp4"
        with encode(path, (64, 96), fps, quality, Guard()) as encoder:
            for number in range(first, last):
                encoder.write(grey(20 + 4 * number))
        made.append(Piece(path, first))
    return made


def packets(path, kind):
    with av.open(str(path)) as container:
        stream = container.streams.get(**{kind: 0})[0]
        return [(packet.pts, bytes(packet)) for packet in container.demux(stream) if packet.size]


@pytest.mark.parametrize("rate", ["25", "30000/1001", "24000/1001", "60000/1001", "25/2", "1"])
@pytest.mark.parametrize("borders", [(0, 40), (0, 1, 2, 40), (0, 13, 26, 40)], ids=str)
def test_each_frame_is_at_its_place(tmp_path, rate, borders):
    """Of one piece or several, of one frame or many; at once, and with the sound of a file."""
    fps, path = Fraction(rate), tmp_path / "out.mp4"
    sound = make(tmp_path / "s.m4a", "-f", "lavfi", "-i", BEEPS)
    join(pieces(tmp_path, fps, borders), sound, path, fps, 40)
    pictures, times = luma(path)
    assert [round((int(one[5, 5]) - 20) / 4) for one in pictures] == list(range(40))
    assert times == pytest.approx([float(n / fps) for n in range(40)], abs=1e-4)
    assert beeps(path)[:, 0] == pytest.approx([0, 0.5, 1, 1.5], abs=0.01)
    # Decoders that ask for a frame's time find one entry for all.
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == fps
    raw = path.read_bytes()
    assert raw.index(b"moov") < raw.index(b"mdat")
    assert raw.count(b"avcC") == 1


def test_nothing_is_encoded_again(tmp_path):
    """Packets of sound and picture are those of the files."""
    sound = make(tmp_path / "s.m4a", "-f", "lavfi", "-i", BEEPS)
    (piece,) = pieces(tmp_path, Fraction(25), (0, 40))
    join([piece], sound, tmp_path / "out.mp4", Fraction(25), 40)
    assert packets(tmp_path / "out.mp4", "audio") == packets(sound, "audio")
    assert packets(tmp_path / "out.mp4", "video") == packets(piece.path, "video")


def test_without_sound(tmp_path):
    """Pictures alone."""
    join(pieces(tmp_path, Fraction(25), (0, 20, 40)), None, tmp_path / "out.mp4", Fraction(25), 40)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(container.streams) == 1


def test_pieces_that_do_not_fit_are_refused(tmp_path):
    """A frame too few or too many, a place taken twice, another encoder, no sound."""
    fps, out = Fraction(25), tmp_path / "out.mp4"
    first, second = pieces(tmp_path, fps, (0, 10, 20))
    (tmp_path / "other").mkdir()
    (other,) = pieces(tmp_path / "other", fps, (10, 20), Quality("ultrafast", 30))
    silent = make(tmp_path / "silent.mp4", "-f", "lavfi", "-i", "color=gray:s=16x16:d=1")
    for refused, sound, count in (
        ([first], None, 20),
        ([first, second], None, 19),
        ([first, second], None, 21),
        ([first, Piece(second.path, 9)], None, 20),
        ([first, Piece(second.path, 11)], None, 21),
        ([first, other], None, 20),
        ([first, second], silent, 20),
        ([first, Piece(tmp_path / "none.mp4", 10)], None, 20),
    ):
        with pytest.raises(JoinFailed, match="joined"):
            join(refused, sound, out, fps, count)
    join([first, second], None, out, fps, 20)
    assert np.diff(luma(out)[1]) == pytest.approx(0.04)
