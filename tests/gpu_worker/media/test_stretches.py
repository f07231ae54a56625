"""Where a clock jumps, and how stretches follow one another; packets as (kind, seconds, length)."""

import pytest
from hypothesis import given, strategies as st

from gpu_worker.media.stretches import Stretches, offsets

PICTURE, SOUND = ("video", 0.04), ("audio", 0.024)


def recording(start, seconds=2.0, picture_at=0.0, sound_at=0.0):
    """Returns the packets of a recording in the order of their times."""
    packets = []
    for (kind, lasts), late in ((PICTURE, picture_at), (SOUND, sound_at)):
        count = round((seconds - late) / lasts)
        packets += [(kind, start + late + n * lasts, lasts) for n in range(count)]
    return sorted(packets, key=lambda packet: packet[1])


def placed(packets):
    found = Stretches()
    return [found.place(*packet) for packet in packets], found.all


@pytest.mark.parametrize(
    ("starts", "count"),
    [
        ([1.4], 1),
        ([1.4, 1.4], 2),
        ([1.4, 0.2, 7200.0], 3),
        # A pause of five seconds is none.
        ([1.4, 8.4], 1),
        ([1.4, 14.0], 2),
    ],
    ids=str,
)
def test_a_stretch_ends_where_the_clock_jumps(starts, count):
    """Back at all, or forth by more than a recorder pauses."""
    packets = [packet for start in starts for packet in recording(start)]
    assert len(placed(packets)[1]) == count


@pytest.mark.parametrize("picture_at", [0.0, 0.5])
def test_packets_that_come_out_late_stay_with_their_own(picture_at):
    """The last picture of a recording comes after the first sound of the next one."""
    first, second = recording(1.4), recording(1.4, picture_at=picture_at)
    tail = [packet for packet in first if packet[0] == "video"][-2:]
    packets = [packet for packet in first if packet not in tail]
    head = next(packet for packet in second if packet[0] == "audio")
    second.remove(head)
    numbers, found = placed([*packets, head, *tail, *second])
    at = len(packets) + 1
    assert numbers[at : at + 2] == [0, 0]
    assert set(numbers[at + 2 :]) == {1}
    assert found[0].ends["video"] == pytest.approx(3.4)


def test_pictures_go_on_without_a_gap():
    """Though the sound is some milliseconds longer."""
    _, found = placed([*recording(1.4), *recording(20.0)])
    found[0].ends["audio"] += 0.02
    assert offsets(found, "video") == pytest.approx([0.0, 3.4 - 20.0])


def test_a_picture_that_is_late_in_its_recording_stays_late():
    """The recording begins with its sound."""
    _, found = placed([*recording(1.4), *recording(1.4, picture_at=0.5)])
    assert offsets(found, "video") == pytest.approx([0.0, 2.0], abs=0.03)


def test_a_recording_without_sound_takes_its_time():
    """Nothing of what follows lies over it."""
    silent = [packet for packet in recording(1.4) if packet[0] == "video"]
    _, found = placed([*recording(1.4), *silent, *recording(1.4)])
    assert offsets(found, "video") == pytest.approx([0.0, 2.0, 4.0], abs=0.03)
    assert offsets([], "video") == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 500.0, 7200.0, 90_000.0]),
            st.floats(0.3, 30),
            st.sampled_from([0.0, 0.02, 0.4]),
            st.sampled_from([0.0, 0.02, 0.4]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_stretch_begins_before_the_one_before_has_ended(recordings):
    """Whatever is joined, as long as no clock goes on where another one has ended by chance."""
    packets = [
        packet
        for start, seconds, picture_at, sound_at in recordings
        for packet in recording(start, seconds + 0.4, picture_at, sound_at)
    ]
    numbers, found = placed(packets)
    assert numbers == sorted(numbers)
    added = offsets(found, "video")
    ends = {"video": 0.0, "audio": 0.0}
    first = min(found[0].begins.values())
    for (kind, moment, lasts), number in zip(packets, numbers, strict=True):
        at = moment + added[number] - first
        # Sound may lie over the last packet of the sound before.
        assert at >= ends[kind] - 0.3
        ends[kind] = at + lasts
