"""Live sessions of all systems with tiny real components."""

import asyncio
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.testing_utils.avatars import make_avatar
from tests.testing_utils.pipelines import (
    BOX,
    generator,
    make_gaia_components,
    make_image,
    make_joyvasa_components,
    make_moda_components,
    make_vasa1_components,
)
from vasa_hf import (
    GaiaAvatarPipeline,
    JoyVasaTalkingHeadPipeline,
    ModaTalkingHeadPipeline,
    Vasa3DAvatarPipeline,
    VasaTalkingFacePipeline,
)
from vasa_hf.live import LiveSettings
from vasa_hf.live.listening import NOD_FRAMES, Listener, nod
from vasa_hf.live.session import MAX_LAG_SECONDS

RATE = 16_000  # of the audio encoder: nothing is resampled
UNIT = RATE // 25
SYSTEMS = {
    "vasa1": (VasaTalkingFacePipeline, make_vasa1_components, make_image, {"box": BOX}),
    "moda": (ModaTalkingHeadPipeline, make_moda_components, make_image, {"box": BOX}),
    "gaia": (GaiaAvatarPipeline, make_gaia_components, make_image, {"box": BOX}),
    "vasa3d": (Vasa3DAvatarPipeline, make_vasa1_components, make_avatar, {"output_size": 32}),
}


def make_pipe(system):
    kind, make_components, make_subject, options = SYSTEMS[system]
    pipe = kind(**make_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe, make_subject(), options


@pytest.fixture(scope="module", params=list(SYSTEMS))
def any_system(request):
    return make_pipe(request.param)


@pytest.fixture(scope="module")
def vasa1():
    return make_pipe("vasa1")


def live(system, **changes):
    """A session that waits for nobody's clock, with windows of 4 frames or more."""
    pipe, subject, options = system
    settings = {"window": 4, "realtime": False, "sampling_rate": RATE, "num_inference_steps": 2}
    return pipe.live(subject, generator=generator(), **{**options, **settings, **changes})


def voice(seconds, seed=0):
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    return noise.astype(np.float32)


def take(session, count):
    return [next(session) for _ in range(count)]


def joined(frames):
    return np.concatenate([frame.audio for frame in frames])


def motions(session):
    """Record the motion that a session renders, by frame."""
    made, render = {}, session._pipeline.render_frames

    def record(subject, motion, view, start, fps):
        made.update(zip(range(start, start + len(motion)), motion, strict=True))
        return render(subject, motion, view, start, fps)

    session._pipeline.render_frames = record
    return made


def test_speech_comes_out_once_and_in_order_between_silences(any_system):
    with live(any_system) as session:
        frames = take(session, 5)
        assert not any(frame.is_speaking for frame in frames) and not joined(frames).any()
        said = [voice(0.7, seed) for seed in range(2)]
        for utterance in said:
            for start in range(0, len(utterance), 1000):
                session.push_audio(utterance[start : start + 1000], RATE)
            session.end_of_speech()
        frames += take(session, 70)
    assert [frame.index for frame in frames] == list(range(75))
    assert all(len(frame.audio) == UNIT for frame in frames)
    assert frames[0].image.shape == (32, 32, 3) and frames[0].image.dtype == np.uint8
    spoken = joined([frame for frame in frames if frame.is_speaking])
    wanted = np.concatenate([np.pad(part, (0, -len(part) % UNIT)) for part in said])
    # Between two utterances there may be a pause; neither loses or repeats a sample.
    np.testing.assert_array_equal(spoken[np.flatnonzero(spoken)], wanted[np.flatnonzero(wanted)])
    assert not joined([frame for frame in frames if not frame.is_speaking]).any()


def test_an_utterance_that_follows_at_once_leaves_no_gap(vasa1):
    with live(vasa1) as session:
        frames = []
        for seed in range(12):
            session.push_audio(voice(0.4, seed), RATE)
            session.end_of_speech()
            frames += take(session, 7)
        frames += take(session, 80)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    spoken = joined([frame for frame in frames if frame.is_speaking])
    np.testing.assert_array_equal(spoken, np.concatenate([voice(0.4, seed) for seed in range(12)]))


def test_an_idle_face_moves_as_in_a_stream_of_silence(vasa1):
    pipe, image, options = vasa1
    silence = np.zeros(30 * UNIT, np.float32)
    chunks = pipe.stream(image, silence, generator=generator(), output_type="latent", num_inference_steps=2, **options)
    expected = torch.cat([chunk.motion for chunk in chunks], dim=1)[0]
    with live(vasa1) as session:
        made = motions(session)
        take(session, 30)
    # The first frames may have been rendered before they were recorded.
    for frame in range(12, 30):
        torch.testing.assert_close(made[frame], expected[frame], rtol=1e-3, atol=1e-3)


def test_an_interrupt_ends_the_sound_within_a_frame_and_does_not_jump(any_system):
    with live(any_system) as session:
        made = motions(session)
        take(session, 2)
        session.push_audio(voice(5), RATE)
        session.end_of_speech()
        frames = take(session, 40)
        assert frames[-1].is_speaking
        session.interrupt()
        after = take(session, 30)
        assert session.stats.waiting_seconds == 0
    sound = joined(after)
    assert np.abs(sound[:UNIT]).max() > 0.1 and not sound[UNIT:].any()
    last = frames[-1].index
    first = next(frame for frame in range(last + 1, last + 12) if frame in made)
    session.interrupt()  # after the end it does nothing
    steps = [(made[i + 1] - made[i]).abs().max().item() for i in range(first, after[-1].index - 1) if i + 1 in made]
    seam = (made[last + 3] - made[last + 2]).abs().max().item()
    assert seam <= max(max(steps), (made[last + 2] - made[last + 1]).abs().max().item()) + 1e-6


def test_a_control_acts_from_the_next_frames_on(vasa1):
    with live(vasa1) as session:
        made = motions(session)
        session.push_audio(voice(4), RATE)
        session.end_of_speech()
        frames = take(session, 40)
        session.set(head_distance=2.0, emotion={"happy": 1.0})
        with pytest.raises(ValueError, match="`camera` must be one of the controls"):
            session.set(camera=1)
        with pytest.raises(ValueError, match="`emotion`"):
            session.set(emotion="hungry")
        frames += take(session, 100)
    far = [frame for frame in made if made[frame][5] < 0.7 * made[39][5]]
    settings = LiveSettings()
    # Some frames are kept, or were taken while the new ones were made.
    assert 40 + settings.kept_frames <= min(far) <= 40 + settings.lead_frames + settings.fade_frames + 4
    spoken = joined([frame for frame in frames if frame.is_speaking])
    np.testing.assert_array_equal(spoken, voice(4))  # no word is lost


def test_audio_of_any_form_and_rate(vasa1):
    with live(vasa1, sampling_rate=24_000, output_type="pil") as session:
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
        session.push_audio((32767 * tone).astype(np.int16), 44_100)
        session.end_of_speech()
        session.push_audio(torch.from_numpy(np.stack([tone, tone])), 44_100)
        session.end_of_speech()
        frames = take(session, 100)
    assert isinstance(frames[0].image, Image.Image) and len(frames[0].audio) == 960
    spoken = joined([frame for frame in frames if frame.is_speaking])
    assert len(spoken) == 2 * 24_000 and np.abs(spoken).max() == pytest.approx(0.5, abs=0.02)
    spectrum = np.abs(np.fft.rfft(spoken[2400:21_600]))
    assert np.fft.rfftfreq(19_200, 1 / 24_000)[spectrum.argmax()] == pytest.approx(440, abs=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda session: session.push_audio(np.array([0.0, np.nan]), RATE), "finite"),
        (lambda session: session.push_audio(np.zeros((100, 2)), RATE), "samples"),
        (lambda session: session.push_audio(["a"], RATE), "samples"),
        (lambda session: session.push_audio(np.zeros(10), 0), "sampling_rate"),
        (lambda session: session.push_audio(np.zeros(10), "16000"), "sampling_rate"),
        (lambda session: session.push_audio(np.zeros(130 * RATE, np.float32), RATE), "at most 120 s of speech"),
        (lambda session: session.listen(np.full(10, np.inf), RATE), "finite"),
    ],
)
def test_bad_audio_is_refused_and_the_session_continues(vasa1, call, message):
    with live(vasa1) as session:
        with pytest.raises(ValueError, match=message):
            call(session)
        assert len(take(session, 3)) == 3 and session.stats.waiting_seconds == 0


def test_an_utterance_keeps_its_rate_and_a_closed_session_takes_nothing(vasa1):
    with live(vasa1) as session:
        session.push_audio(voice(0.1), RATE)
        with pytest.raises(ValueError, match="`sampling_rate` must be 16000 until the utterance ends, got 8000"):
            session.push_audio(voice(0.1), 8000)
        session.end_of_speech()
        session.push_audio(voice(0.1), 8000)
    for call in (session.end_of_speech, lambda: session.push_audio(voice(0.1), RATE)):
        with pytest.raises(ValueError, match="session is closed"):
            call()


def test_a_storm_of_interrupts_leaves_the_session_whole(vasa1):
    with live(vasa1) as session:
        frames = []
        for seed in range(40):
            session.push_audio(voice(0.5, seed), RATE)
            session.end_of_speech()
            frames += take(session, 1 + seed % 3)
            session.interrupt()
        frames += take(session, 20)
        session.push_audio(voice(0.5, 99), RATE)
        session.end_of_speech()
        last = take(session, 60)
    assert [frame.index for frame in frames + last] == list(range(len(frames) + 60))
    assert not joined(frames[-10:]).any()
    np.testing.assert_array_equal(joined([frame for frame in last if frame.is_speaking])[: RATE // 2], voice(0.5, 99))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 30}, "`fps` of a live session must be 25"),
        ({"window": 1}, "window"),
        ({"sampling_rate": 22_051}, "multiple of 25"),
        ({"output_type": "pt"}, "output_type"),
        ({"gaze": (9, 0)}, "gaze"),
        ({"realtime": 1}, "realtime"),
        ({"hop": 3}, "hop"),
    ],
)
def test_bad_options_are_refused(vasa1, options, message):
    with pytest.raises(ValueError, match=message):
        live(vasa1, **options)


def test_joyvasa_has_no_live_sessions():
    pipe = JoyVasaTalkingHeadPipeline(**make_joyvasa_components())
    with pytest.raises(ValueError, match="JoyVASA makes whole windows"):
        pipe.live(make_image(), box=BOX)


def test_frames_come_in_time_and_late_ones_are_left_out(vasa1):
    pipe, image, options = make_pipe("vasa1")
    render = pipe.render_frames

    def slow(subject, motion, *place):
        for i, row in enumerate(motion):
            time.sleep(0.1)  # 10 frames a second
            yield from render(subject, row[None], place[0], place[1] + i, place[2])

    with live((pipe, image, options), realtime=True) as session:
        began = time.monotonic()
        frames = take(session, 25)
        assert time.monotonic() - began > 0.9
        pipe.render_frames = slow
        session.push_audio(voice(2), RATE)
        session.end_of_speech()
        frames += take(session, 25)
        stats = session.stats
    assert stats.dropped > 5 and stats.frames == 50
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices)) and indices[-1] > 60
    # Each frame has the audio since the one before: none is lost with the frames that are.
    assert len(joined(frames)) == (indices[-1] + 1) * UNIT
    said = joined(frames)
    np.testing.assert_array_equal(
        said[np.flatnonzero(said)], voice(2)[np.flatnonzero(voice(2))][: np.count_nonzero(said)]
    )


def test_a_user_that_stops_reading_is_not_caught_up_with(vasa1):
    with live(vasa1, realtime=True) as session:
        take(session, 5)
        time.sleep(MAX_LAG_SECONDS + 0.5)
        assert session.stats.queued_frames <= LiveSettings().lead_frames + 4
        frames = take(session, 10)
    assert session.stats.stalls == 1 and frames[-1].index < 40


def test_audio_that_comes_too_late_leaves_a_pause(vasa1):
    with live(vasa1, realtime=True) as session:
        take(session, 2)
        session.push_audio(voice(0.4), RATE)
        frames = take(session, 30)
        assert session.stats.starved > 0
        session.push_audio(voice(0.6, 1), RATE)
        session.end_of_speech()
        frames += take(session, 40)
    said, wanted = joined(frames), np.concatenate([voice(0.4), voice(0.6, 1)])
    np.testing.assert_array_equal(said[np.flatnonzero(said)], wanted[np.flatnonzero(wanted)])


def test_what_is_kept_does_not_grow(vasa1):
    with live(vasa1) as session:
        sizes = []
        for _ in range(4):
            session.push_audio(voice(0.5), RATE)
            session.end_of_speech()
            take(session, 60)
            timeline = session._timeline
            kept = [track.placed.samples.shape[1] // track.unit for track in (timeline.encoder, timeline.output)]
            sizes.append((*kept, len(session._states), len(session._past), len(timeline._speech)))
    assert np.array(sizes).max() < 60


def test_closing_ends_the_iterator_and_the_thread(vasa1):
    session = live(vasa1, realtime=True)
    threading.Timer(0.3, session.close).start()
    assert sum(1 for _ in session) > 0
    session._thread.join(5)
    assert not session._thread.is_alive()
    with pytest.raises(StopIteration):
        next(session)


def test_an_error_while_rendering_is_raised(vasa1):
    pipe, image, options = make_pipe("vasa1")
    with live((pipe, image, options)) as session:
        take(session, 1)
        pipe.render_frames = lambda *_: (_ for _ in ()).throw(RuntimeError("no memory"))
        with pytest.raises(RuntimeError, match="no memory"):
            take(session, 60)


def test_frames_in_an_event_loop(vasa1):
    async def run():
        frames = []
        with live(vasa1) as session:
            async for frame in session:
                frames.append(frame)
                if len(frames) == 10:
                    break
        return frames

    assert [frame.index for frame in asyncio.run(run())] == list(range(10))


# --- listening --------------------------------------------------------------------------------------------------------


def speech_and_pause(*seconds):
    """Noise and silence in turns, over a faint hiss."""
    parts = [voice(part) * (index % 2 == 0) for index, part in enumerate(seconds)]
    hiss = np.random.default_rng(9).normal(0, 1e-3, sum(map(len, parts)))
    return (np.concatenate(parts) + hiss).astype(np.float32)


@pytest.mark.parametrize(
    ("seconds", "nods"),
    [
        ((1.0, 0.5), 1),
        ((0.4, 0.5), 0),  # too short to answer to
        ((1.0, 0.1, 1.0, 0.1), 0),  # no pause
        ((2.0, 0.5, 2.0, 0.5), 2),
        ((1.0, 0.3, 0.9, 0.3), 1),  # too soon
        ((0.0, 3.0), 0),
    ],
)
def test_a_listener_nods_in_pauses(seconds, nods):
    samples = speech_and_pause(0.0, 0.5, *seconds)
    assert Listener().push(samples, RATE) == nods
    listener = Listener()
    assert sum(listener.push(samples[i : i + 333], RATE) for i in range(0, len(samples), 333)) == nods


def test_a_nod_lowers_the_head_and_comes_back():
    assert nod(0) == nod(NOD_FRAMES) == 0 < nod(NOD_FRAMES // 2)
    recorded = []
    for is_heard in (False, True):
        pipe = make_pipe("vasa1")
        with live(pipe) as session:
            made = motions(session)
            take(session, 20)
            if is_heard:
                session.listen(speech_and_pause(0.0, 0.5, 1.5, 0.5), RATE)
            take(session, 50)
            recorded.append(made)
    still, nodding = recorded
    pitch = [(nodding[i] - still[i])[1].item() for i in sorted(still.keys() & nodding.keys()) if i < 70]
    assert max(pitch) == pytest.approx(nod(NOD_FRAMES // 2), abs=1e-3) and pitch[0] == pitch[-1] == 0
