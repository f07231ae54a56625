"""Decoding from the middle of a file: the same pictures as from its beginning."""

import numpy as np
import pytest

from gpu_worker.media.seek import seek_point
from tests.gpu_worker.footage import make
from tests.gpu_worker.media.test_decode import decoded
from tests.gpu_worker.test_cases import CASES, codes

pytestmark = pytest.mark.editing
OPEN = "keyint=25:min-keyint=25:open-gop=1:bframes=4:b-adapt=0:scenecut=0"
X264, X265 = ("-c:v", "libx264", "-crf", "18"), ("-c:v", "libx265", "-crf", "18")
ALPHA = ("-b:v", "1M", "-pix_fmt", "yuva420p", "-g", "25")
WAYS = {
    "h264-open.mp4": (*X264, "-x264-params", OPEN),
    "h264-open.mkv": (*X264, "-x264-params", OPEN),
    "h264-refresh.mp4": (*X264, "-x264-params", "intra-refresh=1:keyint=25:bframes=2"),
    "h264-refresh.mkv": (*X264, "-x264-params", "intra-refresh=1:keyint=25:bframes=0"),
    "h264-one-key.mp4": (*X264, "-x264-params", "keyint=infinite"),
    "h264.avi": (*X264, "-bf", "2", "-g", "25"),
    "hevc-open.mp4": (*X265, "-x265-params", f"log-level=none:{OPEN}"),
    "hevc-open.mkv": (*X265, "-x265-params", f"log-level=none:{OPEN}"),
    "mpeg2-open.mov": ("-c:v", "mpeg2video", "-q:v", "2", "-g", "25", "-bf", "2"),
    "flash.flv": ("-c:v", "flv", "-q:v", "2", "-g", "25", "-ar", "44100"),
    "vp8-alpha.webm": ("-c:v", "libvpx", *ALPHA, "-auto-alt-ref", "0"),
    "vp9-alpha.webm": ("-c:v", "libvpx-vp9", *ALPHA),
}


@pytest.mark.parametrize(("name", "options"), WAYS.items(), ids=list(WAYS))
def test_each_picture_is_the_one_of_its_moment(tmp_path, name, options):
    """With pictures before a key frame that depend on those before it, and with a screen that is
    renewed part by part.
    """
    path = make(tmp_path / name, "-i", CASES / "plain.mp4", *options)
    whole = codes(decoded(path))
    for first in (1, 23, 24, 26, 47, 49, 62, 90):
        assert codes(decoded(path, first, 4)) == whole[first : first + 4], first


def test_an_edit_list_and_a_cut_in_mid_group(tmp_path):
    """A copy that begins in the middle of a group of pictures."""
    source = make(tmp_path / "a.mp4", "-i", CASES / "plain.mp4", *WAYS["h264-open.mp4"])
    path = make(tmp_path / "b.mp4", "-ss", "0.6", "-i", source, "-c", "copy")
    whole = codes(decoded(path))
    assert whole[0] == 15
    for first in (1, 9, 10, 12, 40, 60):
        assert codes(decoded(path, first, 4)) == whole[first : first + 4], first


def test_held_pictures_are_found_wherever_one_begins(tmp_path):
    """A screen recording: pictures at 0, 0.5, 1, 6, 6.5 and 7 s."""
    whole = codes(decoded(CASES / "hold.mp4"))
    for first in range(1, len(whole) - 2, 5):
        assert codes(decoded(CASES / "hold.mp4", first, 2)) == whole[first : first + 2], first


def test_decoding_begins_no_earlier_than_it_must(tmp_path):
    """At the last key frame that nothing before matters to; of a screen that is renewed part by
    part, at the one before.
    """
    plain = make(tmp_path / "a.mp4", "-i", CASES / "plain.mp4", *X264, "-g", "25")
    refreshed = make(tmp_path / "b.mp4", "-i", CASES / "plain.mp4", *WAYS["h264-refresh.mp4"])
    for path, groups in ((plain, 1), (refreshed, 2)):
        for moment in np.arange(2.1, 3.9, 0.3):
            assert moment - seek_point(path, moment, 1 << 20) < groups + 0.1
    assert seek_point(plain, 0.5, 1 << 20) == pytest.approx(0.5)
    assert seek_point(tmp_path / "none.mp4", 1.0, 1 << 20) == 0
