"""One map of time for picture and sound."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from gpu_worker.edits.timeline import ClipTime, Shown, Span, Timeline, frame_at
from gpu_worker.errors import InvalidParams
from schemas.edits import FramingParams, Transition

pytestmark = pytest.mark.editing


def timeline(duration=10.0, **params):
    return ClipTime.of(FramingParams.model_validate(params), duration)


def test_nothing_asked_for_plays_the_whole_clip():
    """One span from beginning to end."""
    assert timeline().spans == (Span(0.0, 10.0),)


def test_a_trim_and_a_segment_are_applied_once():
    """Slow motion within a trim: what is before, in and after it, each in its place."""
    line = timeline(
        start_time=1.0, end_time=9.0, segments=[{"start": 2.0, "end": 4.0, "speed": 0.5}]
    )
    assert line.spans == (Span(1.0, 2.0), Span(2.0, 4.0, 0.5), Span(4.0, 9.0))
    assert line.output_seconds == pytest.approx(1 + 4 + 5)
    assert [line.source_time(t) for t in (0, 1, 3, 5, 7)] == pytest.approx([1, 2, 3, 4, 6])


@pytest.mark.parametrize(
    ("segments", "spans"),
    [
        pytest.param(
            [{"start": 8.0, "speed": 2.0}], (Span(0, 8), Span(8, 10, 2.0)), id="to-the-end"
        ),
        pytest.param(
            [{"start": 8.0, "end": 99.0, "speed": 2.0}],
            (Span(0, 8), Span(8, 10, 2.0)),
            id="over-the-end",
        ),
        pytest.param(
            [{"start": 12.0, "end": 13.0, "speed": 2.0}], (Span(0, 10),), id="behind-the-end"
        ),
    ],
)
def test_a_segment_ends_with_the_clip(segments, spans):
    """What is not there cannot be slowed down."""
    assert timeline(segments=segments).spans == spans


def test_an_end_behind_the_clip_is_the_clips_end():
    """Editors round up."""
    assert timeline(end_time=10.4).end == 10.0


def test_a_start_behind_the_clip_is_named():
    """There would be nothing to show."""
    with pytest.raises(InvalidParams, match=r"params.start_time \(10 s\)"):
        timeline(start_time=10.0)


@pytest.mark.parametrize(
    "fps", [Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60)]
)
def test_a_frame_is_on_screen_from_its_own_time_on(fps):
    """No float that stands for n/fps falls to the frame before."""
    for index in range(5000):
        assert frame_at(float(index / fps), fps) == index
        assert frame_at(float((index + 1) / fps) - 1e-4, fps) == index


spans = st.lists(
    st.tuples(st.floats(0.01, 5), st.floats(0.01, 5), st.floats(0.25, 4)), min_size=1, max_size=6
)


@given(spans, st.floats(0.1, 40), st.floats(0, 1))
def test_source_time_rises_without_jumps_but_for_the_cuts(parts, duration, start_part):
    """Whatever the segments, time never runs back, stays within the clip, and the length adds
    up.
    """
    segments, at = [], 0.0
    for gap, length, speed in parts:
        segments.append({"start": at + gap, "end": at + gap + length, "speed": speed})
        at += gap + length
    line = timeline(duration, segments=segments, start_time=start_part * duration * 0.9)
    moments = [line.source_time(line.output_seconds * i / 200) for i in range(201)]
    assert moments[0] == pytest.approx(line.start)
    assert moments[-1] == pytest.approx(line.end)
    assert all(a <= b + 1e-9 for a, b in pairwise(moments))
    assert max(b - a for a, b in pairwise(moments)) <= 4 * line.output_seconds / 200 + 1e-6
    assert sum(span.end - span.start for span in line.spans) == pytest.approx(line.end - line.start)
    length = Timeline((line,)).frame_count(Fraction(25)) / 25
    assert length == 1 / 25 or abs(length - line.output_seconds) <= 0.5 / 25 + 1e-9


# ── several clips ─────────────────────────────────────────────────────────────────────────────────


def joined(kind, duration, *lengths):
    clips = tuple(ClipTime((Span(5.0, 5.0 + length),)) for length in lengths)
    return Timeline(clips, Transition(type=kind, duration=duration))


def test_a_cut_is_exact_between_frames():
    """What comes after 1.03 s is of the second clip, whatever the frames' rate."""
    line = joined("cut", 0.5, 1.03, 1.0)
    assert line.output_seconds == pytest.approx(2.03)
    assert line.shown(1.02) == [Shown(0, 1.02)]
    assert line.shown(1.04) == [Shown(1, pytest.approx(0.01))]


def test_a_dissolve_lets_neighbours_overlap():
    """Both run on while they mix, and the weights add up to one."""
    line = joined("dissolve", 0.5, 2.0, 2.0, 2.0)
    assert line.output_seconds == pytest.approx(5.0)
    first, second = line.shown(1.75)
    assert (first.clip, first.clip_time, first.weight) == (0, 1.75, pytest.approx(0.5))
    assert (second.clip, second.clip_time, second.weight) == (
        1,
        pytest.approx(0.25),
        pytest.approx(0.5),
    )
    assert [one.clip for one in line.shown(2.5)] == [1]


@pytest.mark.parametrize(
    ("moment", "weight"), [(0, 1), (1.5, 1), (1.75, 0.5), (2.0, 0), (2.25, 0.5), (2.5, 1), (4, 1)]
)
def test_a_fade_goes_through_black_and_takes_no_time(moment, weight):
    """Down at the end of one, up at the beginning of the next; not at the film's own ends."""
    line = joined("fade", 0.5, 2.0, 2.0)
    assert line.output_seconds == pytest.approx(4.0)
    assert sum(one.weight for one in line.shown(moment)) == pytest.approx(weight)


@pytest.mark.parametrize("kind", ["fade", "dissolve"])
def test_a_clip_that_is_too_short_for_its_transitions_is_named(kind):
    """The middle one needs room on both sides."""
    with pytest.raises(InvalidParams, match=r"params.clips\[1\] lasts 0.90 s"):
        joined(kind, 0.5, 2.0, 0.9, 2.0)
    joined(kind, 0.5, 0.5, 1.0, 0.5)


@given(
    st.lists(st.floats(1.0, 4.0), min_size=1, max_size=6),
    st.sampled_from(["cut", "fade", "dissolve"]),
    st.floats(0.1, 0.5),
)
def test_every_clip_is_shown_from_its_first_to_its_last_moment(lengths, kind, duration):
    """Whatever the lengths: clips come in order, each one's time runs through without a jump,
    weights stay in range.
    """
    line = joined(kind, duration, *lengths)
    step = line.output_seconds / 500
    times = {}
    for n in range(501):
        shown = line.shown(min(n * step, line.output_seconds - 1e-9))
        assert 0 <= sum(one.weight for one in shown) <= 1 + 1e-9
        for one in shown:
            times.setdefault(one.clip, []).append(one.clip_time)
    assert list(times) == list(range(len(lengths)))
    for clip, seen in times.items():
        assert seen[0] <= step + 1e-6
        assert seen[-1] >= lengths[clip] - step - 1e-6
        assert all(b - a == pytest.approx(step, abs=1e-6) for a, b in pairwise(seen[:-1]))
