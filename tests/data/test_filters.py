"""Each filter on a face that is drawn by numbers: what must stay, what must go, and that nothing is lost."""

import numpy as np
import pytest
import torch

from tests.testing_utils.talking_video import analyzer
from vasa_hf.data.filters import (
    REASONS,
    Filters,
    Piece,
    calm,
    clip_square,
    cut_into_pieces,
    frame_reasons,
    frontal_deviation,
    jumps,
    over_time,
    runs,
    speaking,
)
from vasa_hf.data.tracks import FaceFrames
from vasa_hf.geometry.crops import transform_points
from vasa_hf.geometry.landmarks import rows
from vasa_hf.geometry.rotations import matrix_from_euler

SIZE = (400, 300)


def make_faces(count=100, yaw=0.0, roll=0.0, x=200.0, scale=60.0, mouth=True):
    """A face that nods a little and opens its mouth five times a second; yaw, roll, x may be one number a frame."""
    canonical = analyzer().canonical.float()
    time = torch.arange(count) / 25.0
    each = lambda value: torch.as_tensor(value, dtype=torch.float32).expand(count)  # noqa: E731
    pose = torch.zeros(count, 7)
    pose[:, 0], pose[:, 1], pose[:, 2] = each(yaw), 0.03 * torch.sin(3 * time), each(roll)
    pose[:, 3], pose[:, 4], pose[:, 6] = each(x), 150.0, scale
    points = canonical.expand(count, -1, -1).clone()
    points[:, rows(14, 17), 1] += (0.06 * (1 + torch.sin(31 * time)) * mouth)[:, None]
    points = points @ matrix_from_euler(*pose[:, :3].unbind(1)).mT * scale + pose[:, None, 3:6]
    ones = torch.ones(count)
    whole = torch.ones(count, dtype=torch.int32)
    return FaceFrames(
        points[..., :2], pose, ones, whole, whole * 0, ones * 0.06, ones.clone(), ones * 0.15, ones * 0.01
    )


def reasons(faces, speech=None, bits=0.1, **changes):
    speech = torch.ones(len(faces), dtype=torch.bool) if speech is None else speech
    codes = frame_reasons(faces, speech, SIZE, bits, Filters.named("strict", **changes))
    return [None if code < 0 else REASONS[code] for code in codes]


def test_a_good_face_passes():
    assert set(reasons(make_faces())) == {None}


def test_frontal_deviation_is_the_papers_angle():
    """Sum of the two clockwise angles at the nose tip, computed here from vectors one by one."""
    points = make_faces(5, yaw=torch.tensor([0.0, 0.2, 0.4, -0.4, 0.8])).landmarks
    for face, found in zip(points, frontal_deviation(points, torch.zeros(5)), strict=True):
        left, right, nose = (face[row].double().numpy() for row in rows(33, 263, 4))
        angles = []
        for corner in (left, right):
            towards = corner - nose
            angles.append(np.degrees(np.arctan2(-towards[1], -towards[0])) % 360)  # clockwise from the picture's left
        # Clockwise on a screen whose y points down: from left (180) over up (90) to right.
        assert sum(angles) - 180 == pytest.approx(float(found), abs=1e-3)


def test_turned_heads_go_and_tilted_ones_stay():
    assert frontal_deviation(make_faces(1).landmarks, torch.zeros(1)).abs() < 4
    for yaw in (0.75, -0.75):
        assert set(reasons(make_faces(yaw=yaw))) == {"turned away"}
    assert set(reasons(make_faces(yaw=0.2))) == {None}
    assert set(reasons(make_faces(roll=0.35))) == {None}
    assert set(reasons(make_faces(yaw=0.6), frontal_deg=80)) == {None}


def test_a_jump_breaks_the_clip_at_that_frame():
    x = torch.full((100,), 200.0)
    x[50:] += 30
    faces = make_faces(x=x)
    assert jumps(faces).argmax() == 50
    assert [i for i, reason in enumerate(reasons(faces)) if reason] == [50]
    faces.shot[50:] = 1  # another shot may begin anywhere
    assert set(reasons(faces)) == {None}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("presence", 0.2, "no face"),
        ("people", 2, "several people"),
        ("sharpness", 0.003, "blurred"),
        ("blocks", 2.5, "starved of bits"),
        ("lips_seen", 0.05, "mouth covered"),
        ("change", 0.0002, "still image"),
    ],
)
def test_what_is_seen_in_a_part_of_a_video_drops_that_part(name, value, reason):
    faces = make_faces(150)
    getattr(faces, name)[50:100] = value
    found = reasons(faces)
    assert set(found[65:85]) == {reason}
    assert set(found[:30] + found[125:]) == {None}


def test_lips_of_unknown_certainty_pass():
    faces = make_faces()
    faces.lips_seen[:] = torch.nan
    assert set(reasons(faces)) == {None}


def test_small_cut_off_and_starved_faces_go():
    assert set(reasons(make_faces(scale=20.0))) == {"small face"}
    assert set(reasons(make_faces(x=385.0))) == {"cut off"}
    assert set(reasons(make_faces(), bits=0.001)) == {"starved of bits"}


def test_frames_without_a_face_are_no_face_whatever_else():
    faces = FaceFrames.join([make_faces(50), FaceFrames.empty(0, 0, 50)])
    found = reasons(faces)
    assert set(found[:40]) == {None} and set(found[50:]) == {"no face"}


def test_pauses_stay_and_silence_goes():
    speech = torch.ones(150, dtype=torch.bool)
    speech[40:60] = False  # 0.8 s
    speech[100:140] = False  # 1.6 s
    found = reasons(make_faces(150), speech)
    assert [i for i, reason in enumerate(found) if reason == "silent"] == list(range(100, 140))
    assert set(reasons(make_faces(150), speech, max_pause=0.0)) == {None}


def test_lips_that_do_not_move_go():
    assert set(reasons(make_faces(mouth=False))) == {"lips still"}
    assert set(reasons(make_faces(mouth=False), max_pause=0.0)) == {None}


def test_speaking_hears_a_voice_and_not_silence():
    samples = torch.zeros(640 * 100)
    samples[640 * 30 : 640 * 60] = 0.1 * torch.sin(torch.arange(640 * 30) * 0.1)
    heard = speaking(samples, 100)
    assert heard[30:60].all() and not heard[:25].any() and not heard[65:].any()
    assert not speaking(samples * 1e-4, 100).any()
    assert not speaking(None, 100).any()


def test_pieces_are_the_whole_video_and_obey_the_lengths():
    rng = np.random.default_rng(0)
    for _ in range(20):
        count = int(rng.integers(50, 700))
        faces = make_faces(count)
        faces.shot[count // 3 :] = 1
        codes = np.full(count, -1, np.int8)
        for start in rng.integers(0, count, 3):
            codes[start : start + int(rng.integers(1, 40))] = rng.integers(len(REASONS))
        filters = Filters(min_seconds=1.0, max_seconds=4.0)
        pieces = cut_into_pieces(faces, codes, filters)
        assert [piece.first for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
        assert pieces[-1].stop == count
        for piece in pieces:
            if piece.reason is None:
                assert 25 <= piece.stop - piece.first <= 100
                assert (codes[piece.first : piece.stop] == -1).all()
                assert len(set(faces.shot[piece.first : piece.stop].tolist())) == 1


def test_good_frames_of_less_than_three_seconds_are_too_short():
    codes = np.full(160, -1, np.int8)
    codes[74] = REASONS.index("jump")
    pieces = cut_into_pieces(make_faces(160), codes, Filters())
    assert pieces == [Piece(0, 74, "too short"), Piece(74, 75, "jump"), Piece(75, 160, None)]


def test_a_face_that_walks_gets_squares_of_its_own():
    faces = make_faces(200, x=torch.linspace(100, 300, 200), scale=40.0)
    pieces = cut_into_pieces(faces, np.full(200, -1, np.int8), Filters(min_seconds=1.0))
    assert len(pieces) > 1 and all(piece.reason is None for piece in pieces)
    for piece in pieces:
        part = faces[piece.first : piece.stop]
        inside = transform_points(torch.linalg.inv(clip_square(part)), part.landmarks)
        assert inside.min() > 0 and inside.max() < 1
    fast = make_faces(50, x=torch.linspace(100, 400, 50), scale=40.0)
    pieces = cut_into_pieces(fast, np.full(50, -1, np.int8), Filters(min_seconds=1.9))
    assert pieces == [Piece(0, 50, "moves too far")]


def test_windows_over_time_agree_with_loops():
    values = torch.randn(40)
    padded = torch.cat([values[:1].expand(4), values, values[-1:].expand(4)])
    for kind, function in (("max", torch.amax), ("median", torch.median)):
        expected = torch.stack([function(padded[i : i + 9]) for i in range(40)])
        assert torch.equal(over_time(values, 9, kind), expected)
    for kind, function in (("mean", np.mean), ("std", np.std)):
        measured = [function(values[i : i + 9].numpy()) for i in range(32)]
        least = float(np.quantile(measured, 0.2))
        expected = [any(value < least for value in measured[max(i - 8, 0) : i + 1]) for i in range(40)]
        assert calm(values, 9, kind, least).tolist() == expected and len(set(expected)) == 2
    assert calm(values[:5], 25, "mean", 10.0).all()  # a shot shorter than the window is a window
    assert list(runs(np.array([1, 1, 2, 1]))) == [(0, 2), (2, 3), (3, 4)]
    assert list(runs(np.array([]))) == []


def test_names_and_numbers_are_checked():
    assert Filters.named("loose").min_sync == 0 and Filters.named("strict", max_offset=2.0).max_offset == 2
    with pytest.raises(ValueError, match="strict"):
        Filters.named("odd")
    with pytest.raises(ValueError, match="no 'odd'"):
        Filters.named("strict", odd=1)
    with pytest.raises(ValueError, match="`max_seconds`"):
        Filters(min_seconds=3, max_seconds=4)
