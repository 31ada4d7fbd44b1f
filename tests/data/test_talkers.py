"""Talkers: lips that follow phones, heads that follow the voice, eyes that blink and look."""

import dataclasses
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.test_heads import POSE, canonical, head, labels, mesh, portrait  # noqa: F401 (fixtures)
from vasa_hf.data.clips import MotionData
from vasa_hf.data.landmark_dynamics import FaceLabels, LandmarkDynamics
from vasa_hf.data.shards import ShardWriter, decode, shard_paths
from vasa_hf.data.synthetic.head_points import HeadPoints, HeadTrack, random_face
from vasa_hf.data.synthetic.prosody import measure_prosody
from vasa_hf.data.synthetic.rendered_talkers import Camera, TalkingPhotograph, write_clip
from vasa_hf.data.synthetic.speech import Speech, Voice, available_engines
from vasa_hf.data.synthetic.talkers import (
    RealFaces,
    blink_share,
    gaze_targets,
    head_rotation,
    motion_data,
    perform,
    random_manner,
    talk,
    talkers,
)
from vasa_hf.data.synthetic.visemes import CLOSURES, CONTACT, FPS, OPENING, ROUND, articulate, mouth_shapes
from vasa_hf.geometry.landmarks import GROUPS, eye_openness, mouth_openness
from vasa_hf.geometry.rotations import matrix_from_euler
from vasa_hf.head.loading import load_head
from vasa_hf.head.template import template_head
from vasa_hf.hub import resolve
from vasa_hf.media.video import VideoReader

SHARED = Path(__file__).parents[3] / "shared" / "data"
ICT = SHARED / "head" / "ict_facekit.npz"
needs_voice = pytest.mark.skipif(not available_engines(), reason="neither espeak-ng nor flite is installed")
needs_head = pytest.mark.skipif(not ICT.is_file(), reason="no head/ict_facekit.npz")
# Signed lip gaps about those of the real head.
GAPS = {"jawOpen": 0.35, "mouthClose": -0.4, "mouthFunnel": 0.14, "mouthPucker": 0.0, "mouthStretch": 0.0}
GAPS |= {"mouthSmile": 0.0, "mouthUpperUp": 0.07, "mouthLowerDown": 0.07, "mouthRollLower": -0.03, "mouthPress": -0.02}


def spoken(phones, level=0.3, seed=0):
    """Buzzing vowels and quiet consonants: `(name, seconds)` pairs, or `(name, seconds, loudness)`."""
    rng, rows, sound, at = np.random.default_rng(seed), [], [], 0.0
    for name, seconds, *loud in phones:
        count = round(seconds * 16_000)
        time = (round(at * 16_000) + np.arange(count)) / 16_000
        vowel = name[0] in "aeiou"
        amount = 0.0005 if name == "sil" else (loud[0] if loud else 1.0) * level * (1.0 if vowel else 0.1)
        wave = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 9)) if vowel else rng.standard_normal(count)
        sound.append(amount * 0.3 * wave)
        rows.append((name, at, at + seconds))
        at += seconds
    return Speech(np.concatenate(sound).astype(np.float32), 16_000, rows)


SAID = spoken(
    [("sil", 0.8), ("b", 0.08), ("aa", 0.2), ("m", 0.07), ("aa", 0.16), ("t", 0.06), ("uw", 0.18), ("p", 0.05)]
    + [("iy", 0.2), ("sil", 1.0), ("f", 0.1), ("aa", 0.2), ("sil", 0.8)]
)


@pytest.fixture(scope="module")
def dynamics():
    """The landmark dynamics of the embedded weights."""
    return LandmarkDynamics.load(Path(resolve("vasa-small")) / "landmark_dynamics.safetensors")


@pytest.fixture(scope="module")
def face(dynamics):
    """A person on the built-in head."""
    return random_face(template_head(dynamics.canonical), dynamics, np.random.default_rng(0)), dynamics


# --- lips -----------------------------------------------------------------------------------------------------------


def frames_of(speech, name):
    return [int((start + end) / 2 * FPS) for phone, start, end in speech.phones if phone == name]


def test_phones_say_what_the_mouth_does():
    track = articulate(SAID, 90)
    assert all(track[frame, CONTACT] == 1 for name in "bmp" for frame in frames_of(SAID, name))
    assert all(track[frame, OPENING] > 0.6 and track[frame, CONTACT] < 0.3 for frame in frames_of(SAID, "aa"))
    (rounded,) = frames_of(SAID, "uw")
    assert track[rounded, ROUND] > 0.6 and track[frames_of(SAID, "aa"), ROUND].max() < 0.4
    assert (track[:10, CONTACT] == 1).all() and (track[-8:, CONTACT] == 1).all() and track[-8:, OPENING].max() < 0.02


def test_neighbours_colour_a_phone():
    """The same /s/ is rounded before /u/ and not before /i/, and the rounding begins ahead of the vowel."""
    track = {v: articulate(spoken([("sil", 0.4), ("s", 0.16), (v, 0.2), ("sil", 0.4)]), 28) for v in ("uw", "iy")}
    (s,) = frames_of(spoken([("sil", 0.4), ("s", 0.16)]), "s")
    assert track["uw"][s, ROUND] > 0.2 > 0.05 > track["iy"][s, ROUND]


def test_shapes_make_exactly_the_wanted_gap():
    track = articulate(SAID, 90)
    own = 0.03
    shapes = mouth_shapes(track, GAPS, own)
    gap = own + sum(weight * GAPS[name] for name, weight in shapes.items())
    assert all(abs(gap[frame]) < 1e-9 for name in "bmp" for frame in frames_of(SAID, name))
    assert all(0.1 < gap[frame] < 0.3 for frame in frames_of(SAID, "aa"))
    assert all((weight >= 0).all() and (weight <= 1).all() for weight in shapes.values())
    wider = mouth_shapes(track, GAPS, own, amplitude=1.3)
    assert sum(wider[name] * GAPS[name] for name in GAPS)[frames_of(SAID, "aa")[0]] > gap[frames_of(SAID, "aa")[0]]


# --- eyes -----------------------------------------------------------------------------------------------------------


def manner_of(rng, **changes):
    return dataclasses.replace(random_manner(rng), **changes)


@needs_voice
def test_blinks_are_as_often_as_asked_and_go_like_blinks():
    rng = np.random.default_rng(0)
    counts = {}
    for rate in (12, 24):
        closed = blink_share(rng, manner_of(rng, blinks=rate), np.zeros((0, 2)), 25 * 60 * 20)
        starts = np.flatnonzero((closed[1:] > 0.5) & (closed[:-1] <= 0.5))
        counts[rate] = len(starts) / 20
        assert 0.7 * rate < counts[rate] < 1.25 * rate
        peaks = [closed[start : start + 6].max() for start in starts]
        assert np.mean(np.array(peaks) > 0.95) > 0.98
        shut, opening = (np.mean([np.sum(closed[s - 4 : s + 10] >= low) for s in starts[5:-5]]) for low in (0.9, 0.02))
        assert 1 <= shut <= 3.5 and 6 <= opening <= 11  # frames
    # Ends of phrases draw them.
    phrases = np.stack([np.arange(0, 1200, 4.0), np.arange(0, 1200, 4.0) + 3.0], 1)
    closed = blink_share(rng, manner_of(rng, blinks=20), phrases, 25 * 1200)
    starts = np.flatnonzero((closed[1:] > 0.5) & (closed[:-1] <= 0.5)) / FPS
    near = np.abs(starts[:, None] - phrases[:, 1]).min(1) < 0.25
    assert near.mean() > 1.5 * 0.5 / 4


@needs_voice
def test_eyes_jump_and_rest():
    rng = np.random.default_rng(1)
    gaze = gaze_targets(rng, manner_of(rng, aversion=0.15), np.zeros((0, 2)), 25 * 600)
    speed = np.linalg.norm(np.diff(gaze, axis=0), axis=1)
    assert np.mean(speed < 1e-6) > 0.85 and 20 < (speed > 0.02).sum() / 10 < 100  # still, but for some jumps a minute
    assert np.mean(np.linalg.norm(gaze, axis=1) < 0.1) > 0.6


# --- head -----------------------------------------------------------------------------------------------------------


def correlation_at_lags(velocity, loudness, lags):
    """Of downward speed with loudness, both over a second's mean; lag > 0: the head is late."""
    change = loudness - np.convolve(loudness, np.ones(25) / 25, "same")
    out = []
    for lag in lags:
        a = change[max(0, -lag) : len(change) - max(0, lag)]
        b = velocity[max(0, lag) : len(velocity) - max(0, -lag)]
        out.append(np.corrcoef(a, b)[0, 1])
    return np.array(out)


@needs_voice
def test_head_nods_with_the_voice_and_not_with_another():
    rng, lags = np.random.default_rng(3), range(-8, 9)
    own, other, steps = [], [], []
    for index in range(6):
        loud = rng.uniform(0.15, 1.0, 24)
        phones = [("sil", 0.5)]
        for k, amount in enumerate(loud):
            phones += [("t", 0.08), ("aa", float(rng.uniform(0.1, 0.22)), float(amount))]
            phones += [("sil", 0.4)] if k % 8 == 7 else []
        speech = spoken(phones, seed=index)
        prosody = measure_prosody(speech)
        frames = len(speech.samples) // 640
        turn = head_rotation(rng, random_manner(rng), prosody, 4 * frames)[2::4]
        loudness = prosody.loudness[: 4 * frames].reshape(-1, 4).mean(1)
        velocity = np.gradient(turn[:, 1])
        own.append(correlation_at_lags(velocity, loudness, lags))
        other.append(correlation_at_lags(velocity, np.roll(loudness, frames // 2), lags))
        rotation = matrix_from_euler(*torch.from_numpy(turn).unbind(1))
        cosine = ((rotation[:-1].mT @ rotation[1:]).diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
        steps.append(float(torch.rad2deg(cosine.clamp(-1, 1).acos()).mean()))
    own, other = np.mean(own, 0), np.mean(other, 0)
    assert list(lags)[int(own.argmax())] in (-4, -3, -2, -1) and own.max() > 0.2  # down before the vowel is loudest
    assert np.abs(other).max() < 0.6 * own.max()
    assert 0.2 < np.mean(steps) < 0.8  # degrees a frame


def test_prosody_finds_loud_vowels_and_pauses():
    loud = [0.2, 1.0, 0.2, 1.0, 0.2]
    speech = spoken([("sil", 0.5), *[p for x in loud for p in (("s", 0.15), ("aa", 0.15, x))], ("sil", 0.5)])
    prosody = measure_prosody(speech)
    np.testing.assert_allclose(prosody.phrases, [[0.5, 2.0]])
    strongest = prosody.accents[np.argsort(-prosody.accents[:, 1])[:2], 0]
    np.testing.assert_allclose(sorted(strongest), [0.95, 1.55])
    with pytest.raises(ValueError, match="16000"):
        measure_prosody(Speech(np.zeros(800, np.float32), 8000, []))


# --- labels ---------------------------------------------------------------------------------------------------------


def test_points_without_drawing_are_those_of_the_picture(head):  # noqa: F811
    """On the hand-made head, with everything moving at once."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(shape, generator=generator)  # noqa: E731
    names = ("jawOpen", "eyeBlink_L", "eyeBlink_R")
    weights = draw(5, 3)
    weights[0, 1:] = 0
    track = HeadTrack(names, weights, 0.3 * draw(5, 3), 0.4 * draw(5, 2) - 0.2, 0.05 * draw(5, 2), 0.9 + 0.2 * draw(5))
    points, pose = HeadPoints(head).landmarks(track)
    for frame in range(5):
        drawn = head.render(track.state(frame), size=32)
        torch.testing.assert_close(points[frame], drawn.landmarks, atol=2e-6, rtol=0)
        torch.testing.assert_close(pose[frame], drawn.pose, atol=2e-6, rtol=0)


@needs_voice
@pytest.mark.parametrize("kind", ["built-in", pytest.param("ict", marks=needs_head)])
def test_a_talker_shuts_the_mouth_where_it_must(kind, dynamics):
    who = load_head(ICT if kind == "ict" else None, dynamics.canonical)
    points = random_face(who, dynamics, np.random.default_rng(0))
    gaps, silent, blinks, frames = [], [], 0, 0
    for _, _, talker in talkers([points], 1.0, seed=5):
        landmarks, _ = points.landmarks(talker.track)
        gap, middle = mouth_openness(landmarks)[:, 0].numpy(), (np.arange(len(landmarks)) + 0.5) / FPS
        for phone, start, end in talker.speech.phones:
            if phone in CLOSURES and end < middle[-1]:
                gaps.append(gap[np.abs(middle - (start + end) / 2).argmin()])
            elif phone == "sil":
                silent += gap[(middle > start + 0.16) & (middle < end - 0.16)].tolist()
        shut = (eye_openness(landmarks).mean(1) < 0.1).numpy()
        blinks, frames = blinks + int((shut[1:] & ~shut[:-1]).sum()), frames + len(gap)
    assert len(gaps) > 20 and max(gaps) < 0.03
    assert np.mean(np.array(silent) < 0.03) > 0.95
    assert 8 < blinks / (frames / FPS / 60) < 35


@needs_voice
def test_same_seed_same_talker(face):
    """For a given recording; espeak-ng itself varies by samples from call to call."""
    points, _ = face
    tracks = []
    for seed in (1, 1, 2):
        rng = np.random.default_rng(seed)
        tracks.append(perform(rng, random_manner(rng), points, SAID, 90).track)
    for name in ("weights", "rotation", "gaze", "shift", "zoom"):
        one, again, other = (getattr(track, name) for track in tracks)
        assert torch.equal(one, again) and not torch.equal(one, other)


def test_head_turns_do_not_leak_into_the_dynamics(face):
    points, dynamics = face
    still = points.still()
    turned = HeadTrack((), torch.zeros(1, 0), torch.tensor([[0.5, 0.2, 0.1]]), still.gaze, still.shift, still.zoom)
    motion, _ = points.motion(turned, dynamics)
    torch.testing.assert_close(motion[0, :3], turned.rotation[0], atol=1e-5, rtol=0)
    assert motion[0, 6:30].abs().max() < 1e-3


@needs_voice
def test_file_holds_motion_and_sound_of_the_same_frames(face, tmp_path):
    points, dynamics = face
    level = lambda samples, frames: np.abs(samples).reshape(frames, 640).mean(1)[:, None].astype(np.float16)  # noqa: E731
    data = motion_data(talkers([points], 0.3, seed=4), dynamics, level, np.zeros((2, 75, 1), np.float16))
    data.save(tmp_path / "talkers.safetensors")
    data = MotionData.load(tmp_path / "talkers.safetensors")
    assert data.motion.shape[1] == 34 and data.speaks.all() and len(set(data.person)) == (len(data.person) + 2) // 3
    assert data.quiet.any() and data.audio[data.quiet].max() < 0.2 * data.audio[~data.quiet].mean()
    both = data.join([data])
    assert len(both.offsets) == 2 * len(data.person) + 1 and both.person.max() == 2 * data.person.max() + 1
    assert np.array_equal(both.motion[both.offsets[len(data.person)] :], data.motion)


@needs_voice
@pytest.mark.skipif(not (SHARED / "eval" / "clips.npz").is_file(), reason="no eval/clips.npz")
def test_talkers_take_over_how_real_mouths_open(face):
    points, dynamics = face
    real = RealFaces(SHARED / "eval", dynamics)
    rng = np.random.default_rng(0)
    measures = rng.normal(size=(400, 3)) * [0.05, 0.03, 0.3]
    measures -= measures.mean(0)
    codes = measures @ rng.normal(size=(3, 28)) + 0.1 * rng.normal(size=(400, 28))
    corrected = real.take_over(codes, measures)
    slope = np.linalg.lstsq(measures, corrected - corrected.mean(0), rcond=None)[0]
    np.testing.assert_allclose(slope[:, :20], real.slope, atol=1e-3)
    np.testing.assert_allclose(corrected[:, 20:], codes[:, 20:], atol=1e-6)


@needs_voice
def test_the_speech_can_be_given(face):
    """Another text on the same face, and the track is as long as asked for."""
    points, _ = face
    rng = np.random.default_rng(0)
    name = "espeak:en-us" if "espeak" in available_engines() else "flite:slt"
    manner = manner_of(rng, voice=Voice("en", name, 150, 50, 50))
    speech = manner.voice.say("mama baba.")
    assert len(perform(rng, manner, points, speech, 50).track) == 50
    assert len(talk(rng, manner, points, 3.0).track) == 75


# --- the built-in head and pictures -----------------------------------------------------------------------------------


def test_built_in_head_is_a_head(dynamics):
    """Landmarks are those of the mean face; shapes do what their names say; sides are mirrored."""
    built_in = template_head(dynamics.canonical)
    assert built_in.vertices.isfinite().all() and built_in.skin.max() < len(built_in.vertices)
    face = random_face(built_in, dynamics, np.random.default_rng(0), strength=0.0)
    gaps = face.gap_of_shape()
    assert gaps["jawOpen"] > 0.25 and abs(gaps["jawOpen"] + gaps["mouthClose"]) < 0.1 and gaps["mouthLowerDown"] > 0

    def measured(name, weight=1.0):
        still = face.still()
        track = dataclasses.replace(still, names=(name,), weights=torch.full((1, 1), weight))
        points, _ = face.landmarks(track)
        return mouth_openness(points)[0], eye_openness(points)[0], points[0]

    rest = measured("jawOpen", 0.0)
    assert rest[0][0] < 0.02 and rest[1].min() > 0.25
    assert measured("mouthPucker")[0][1] < rest[0][1] - 0.05 and measured("mouthSmile_L")[0][1] > rest[0][1]
    assert measured("eyeBlink_L")[1][1] < 0.08 and measured("eyeBlink_L")[1][0] > 0.25  # the picture's right eye
    brow = list(GROUPS["left_brow"])
    assert (measured("browOuterUp_R")[2][brow, 1] < rest[2][brow, 1] - 0.001).any()
    with pytest.raises(ValueError, match="`canonical`"):
        template_head(torch.zeros(68, 3))


@needs_voice
def test_a_clip_is_written_with_the_labels_of_its_pictures(dynamics, portrait, labels, tmp_path):  # noqa: F811
    """The hand-made portrait on the built-in head: frames, sound and labels of one length, read back by key."""
    photograph = TalkingPhotograph(template_head(dynamics.canonical), portrait, labels, POSE)
    with ShardWriter(tmp_path) as writer:
        frames = write_clip(writer, "one", "nobody", photograph, dynamics, [3], size=64, seconds=1.0)
    (shard,) = shard_paths(tmp_path)
    with tarfile.open(shard) as tar:
        files = {name.partition(".")[2]: tar.extractfile(name).read() for name in tar.getnames()}
    assert sorted(files) == ["json", "mp4", "npz", "wav"] and decode("json", files["json"])["frames"] == frames == 25
    (tmp_path / "clip.mp4").write_bytes(files["mp4"])
    (tmp_path / "clip.npz").write_bytes(files["npz"])
    assert len(list(VideoReader(tmp_path / "clip.mp4"))) == frames and len(decode("wav", files["wav"])) == 640 * frames
    read = FaceLabels.load(tmp_path / "clip.npz")
    rng = np.random.default_rng([3])
    camera = Camera.draw(rng)
    track = photograph.talk(rng, camera, 1.0).track
    assert len(read.landmarks) == frames == len(track)
    drawn = photograph.head.render(track.state(0), 64)  # starts in silence: no chance in the sound
    torch.testing.assert_close(read.landmarks[0], drawn.landmarks, atol=2e-4, rtol=0)
    torch.testing.assert_close(read.pose[0], drawn.pose, atol=1e-3, rtol=0)
