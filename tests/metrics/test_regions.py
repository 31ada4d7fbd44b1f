"""Mouth and eyes on drawn faces: right values are known."""

import math

import pytest
import torch
import torch.nn.functional as F

from vasa_hf.evaluation.catalogue import NOT_DEFINED
from vasa_hf.evaluation.scoring import Scorer, VideoSample
from vasa_hf.geometry.landmarks import GROUPS, NUM_LANDMARKS
from vasa_hf.metrics import regions
from vasa_hf.metrics.faces import FaceTrack
from vasa_hf.models.face_recognizer import FaceRecognizer

SIZE = 128
MOUTH = (slice(None), slice(None), slice(70, 110), slice(36, 92))  # of frames: the lips and around them
RATIOS = ("mouth_sharpness", "eye_sharpness", "mouth_flicker")


def draw(gaps, shift=0.0, lids=0.35):
    """Landmarks of a face with these lip gaps (of the outer eye distance), `shift` to the right frame by frame."""
    points = torch.full((len(gaps), NUM_LANDMARKS, 2), 0.5)

    def ellipse(name, x, y, width, heights, sign=1):
        rows = list(GROUPS[name])
        angle = math.pi - 2 * math.pi * torch.arange(len(rows)) / len(rows)
        points[:, rows, 0] = x + sign * width / 2 * angle.cos()
        points[:, rows, 1] = y + torch.as_tensor(heights)[..., None] / 2 * angle.sin()

    ellipse("left_eye", 0.35, 0.4, 0.1, 0.1 * lids)
    ellipse("right_eye", 0.65, 0.4, 0.1, 0.1 * lids, -1)
    gaps = torch.tensor(gaps) * 0.4  # outer corners at 0.3 and 0.7
    ellipse("lips_inner", 0.5, 0.7, 0.2, gaps)
    ellipse("lips_outer", 0.5, 0.7, 0.3, gaps + 0.12)
    points[..., 0] += shift * torch.arange(len(gaps))[:, None]
    return FaceTrack.of(points, torch.zeros(len(gaps), 7))


def texture(count, size=SIZE):
    """Random images with detail of all sizes."""
    parts = [F.interpolate(torch.rand(count, 3, size // s, size // s), size, mode="bilinear") for s in (2, 8, 32)]
    return sum(parts) / 3


def blurred(frames):
    return F.avg_pool2d(frames, 5, 1, 2, count_include_pad=False)


@pytest.fixture
def scorer():
    network = FaceRecognizer(image_size=32, widths=(4, 8), depths=(1,), embedding_dim=4, num_feature_maps=2).eval()
    return Scorer({"face_recognizer": network})


def score(scorer, made, truth, labels, names=(*RATIOS, "mouth_distance", "eye_distance"), **others):
    return scorer.score(names, VideoSample(frames=made, truth=truth, track=labels, truth_track=labels, **others))


def test_outlines_hold_the_pixels_whose_centres_they_hold():
    square = torch.tensor([[2.0, 1.0], [6.0, 1.0], [6.0, 4.0], [2.0, 4.0]])
    notched = torch.tensor([[0.0, 0.0], [8.0, 0.0], [4.0, 4.0], [8.0, 8.0], [0.0, 8.0]])  # a wedge is missing
    expected = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    expected[0, 0, 1:4, 2:6] = True
    y, x = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    expected[1, 0] = x < 4 + (y - 4).abs()
    five = torch.cat([square, square[-1:]])  # a point twice changes nothing
    assert torch.equal(regions.outline_mask(torch.stack([five, notched]), (8, 8)), expected)


def test_true_frames_score_one(scorer):
    truth, track = texture(6), draw([0.2] * 6)
    values = score(scorer, truth.clone(), truth, track)
    assert values == pytest.approx({**dict.fromkeys(RATIOS, 1.0), "mouth_distance": 0, "eye_distance": 0}, abs=1e-6)


def test_half_the_contrast_is_half_the_sharpness_and_flicker(scorer):
    truth, track = texture(6), draw([0.2] * 6)
    values = score(scorer, truth / 2 + 0.25, truth, track, RATIOS)
    assert values == pytest.approx(dict.fromkeys(RATIOS, 0.5), abs=1e-4)


def test_a_blurred_mouth_is_seen_in_the_mouth_alone(scorer):
    truth, track = texture(6), draw([0.2] * 6)
    made = truth.clone()
    made[MOUTH] = blurred(truth)[MOUTH]
    values = score(scorer, made, truth, track)
    assert values["mouth_sharpness"] < 0.5 and values["mouth_distance"] > 1e-3
    assert values["eye_sharpness"] == pytest.approx(1) and values["eye_distance"] == pytest.approx(0, abs=1e-6)
    values = score(scorer, blurred(truth), truth, track)
    assert values["eye_sharpness"] < 0.5 and values["eye_distance"] > 1e-3


def test_shut_lips_and_shut_eyes_do_not_count(scorer):
    truth, made = texture(4), texture(4)
    made[1:3] = truth[1:3]
    track = draw([0.05, 0.2, 0.2, 0.05])
    assert score(scorer, made, truth, track)["mouth_sharpness"] == pytest.approx(1)
    blinking = draw([0.2] * 4)
    blinking.landmarks[::3] = draw([0.2] * 2, lids=0.1).landmarks
    assert score(scorer, made, truth, blinking)["eye_sharpness"] == pytest.approx(1)
    values = score(scorer, made, truth, draw([0.05] * 4, lids=0.1))
    assert all(values[name].startswith(NOT_DEFINED) for name in ("mouth_sharpness", "eye_sharpness"))


def test_flicker_of_a_known_size():
    """Brightness that jumps by ±0.05 has the second difference 4 x 0.05, whatever stands still or moves steadily."""
    jump = 0.05 * (-1.0) ** torch.arange(8)[:, None, None, None]
    still = texture(1).expand(8, -1, -1, -1)
    assert regions.mouth_flicker(still, draw([0.1] * 8)) == pytest.approx(0, abs=1e-6)
    assert regions.mouth_flicker(still * 0.8 + 0.1 + jump, draw([0.1] * 8)) == pytest.approx(0.2, abs=1e-4)
    moving = torch.stack([frame.roll(number, 2) for number, frame in enumerate(still)])  # one pixel a frame
    followed = regions.mouth_flicker(moving, draw([0.1] * 8, shift=1 / SIZE))
    assert followed < 1e-3 < 0.1 * regions.mouth_flicker(moving, draw([0.1] * 8))
    with pytest.raises(ValueError, match="at least 3"):
        regions.mouth_flicker(still[:2], draw([0.1] * 2))


def test_a_flickering_copy_flickers_more(scorer):
    steps = torch.rand(8, 1, 1, 1) * 0.1
    truth = (texture(1) * 0.8 + steps).contiguous()
    made, elsewhere = truth.clone(), truth.clone()
    made[MOUTH] += 0.05 * (-1.0) ** torch.arange(8)[:, None, None, None]
    elsewhere[:, :, :60] += 0.05 * (-1.0) ** torch.arange(8)[:, None, None, None]
    track = draw([0.1] * 8)
    assert score(scorer, made, truth, track)["mouth_flicker"] > 1.5
    beside = score(scorer, elsewhere, truth, track)["mouth_flicker"]  # the square reaches up to row 64
    assert beside == pytest.approx(1, abs=1e-3)
    # Driving frames stand in where nothing true is there.
    video = VideoSample(frames=made, track=track, truth_track=track, driving=truth)
    assert scorer.score(("mouth_flicker",), video)["mouth_flicker"] > 1.5
    frozen = score(scorer, truth, truth[:1].expand_as(truth), track)["mouth_flicker"]
    assert frozen.startswith(NOT_DEFINED)


def mouths(teeth):
    """Red lips with a dark line, or a white one, between them."""
    frames = torch.tensor([0.7, 0.35, 0.35])[:, None, None].repeat(len(teeth), 1, SIZE, SIZE)
    frames = frames.view(len(teeth), 3, SIZE, SIZE)
    line = slice(int(0.7 * SIZE) - 2, int(0.7 * SIZE) + 3)
    for frame, white in zip(frames, teeth, strict=True):
        frame[:, line] = torch.tensor([0.85, 0.82, 0.75] if white else [0.3, 0.1, 0.1])[:, None, None]
    return frames


def test_teeth_on_shut_lips_are_counted(scorer):
    track = draw([0.0, 0.02, 0.0, 0.2])
    for teeth, share in (((0, 0, 0, 1), 0), ((1, 0, 0, 1), 1 / 3), ((1, 1, 1, 0), 1)):
        assert regions.teeth_on_shut_lips(mouths(teeth), track) == pytest.approx(share)
    # In reenactment the driving lips say when; with audio alone only lips that are shut count.
    driving, frames = draw([0.2, 0.0, 0.0, 0.0]), mouths((1, 1, 1, 1))
    video = VideoSample(frames=frames, track=track, truth_track=driving)
    assert scorer.score(("teeth_when_shut",), video)["teeth_when_shut"] == 1
    video = VideoSample(frames=mouths((1, 0, 0, 1)), track=track, truth_track=driving)
    assert scorer.score(("teeth_when_shut",), video)["teeth_when_shut"] == pytest.approx(1 / 3)
    video = VideoSample(frames=mouths((1, 0, 0, 1)), track=draw([0.2] * 4), samples=torch.zeros(2560))
    assert scorer.score(("teeth_when_shut",), video)["teeth_when_shut"].startswith(NOT_DEFINED)


def test_frames_without_a_face_do_not_count(scorer):
    truth, track = texture(7), draw([0.2] * 7)
    track.landmarks[1], track.found[1] = torch.nan, False
    made = truth.clone()
    made[1] = 0
    values = score(scorer, made, truth, track)
    assert values["mouth_flicker"] == pytest.approx(1) and values["mouth_sharpness"] == pytest.approx(1)
    assert values["eye_distance"] == 0


def test_a_track_of_another_length_is_reported():
    with pytest.raises(ValueError, match="as many as the 4 of `track`"):
        regions.mouth_sharpness(texture(3), draw([0.2] * 4))
