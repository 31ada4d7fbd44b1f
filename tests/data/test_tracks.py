"""Shots, the followed face, and what is told of each frame, on a video made by the embedded weights."""

import numpy as np
import pytest
import torch

from tests.testing_utils.talking_video import analyzer, masked, on_canvas, talk
from vasa_hf.data.tracks import blockiness, cut_square, follow_faces, sharpness
from vasa_hf.geometry.crops import crop_matrix, cut_crop


def test_a_square_is_cut_as_from_the_whole_picture():
    frame = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    whole = torch.from_numpy(frame).permute(2, 0, 1).float() / 255
    for center, side in (((150.0, 100.0), 70.0), ((10.0, 190.0), 160.0), ((250.0, 40.0), 300.0)):
        matrix = crop_matrix(torch.tensor(center), torch.tensor(side), 0.2)
        assert torch.allclose(cut_square(frame, matrix, 48), cut_crop(whole, matrix, 48), atol=0.02)


def test_a_talking_face_is_followed_over_a_cut():
    frames, _ = talk()
    wide = on_canvas(frames[:20], size=(300, 640), top=30)
    near = on_canvas(frames[20:35, :, ::-1], size=(300, 640))
    near = [255 - picture for picture in wide[:4]] + near  # no face for four frames, then another place
    faces = follow_faces(analyzer(), wide + near)
    assert len(faces) == 39
    assert faces.shot.tolist() == [0] * 20 + [1] * 4 + [2] * 15
    shown = [*range(20), *range(24, 39)]
    assert (faces.presence[shown] > 0.9).all() and set(faces.people[shown].tolist()) == {1}
    for row in (3, 13, 30):
        (face,) = analyzer().detect((wide + near)[row])
        apart = (face.landmarks - faces.landmarks[row]).norm(dim=1) / face.side
        assert apart.mean() < 0.015  # the crop is not the same to the pixel
        assert (faces.pose[row, :3] - face.pose[:3]).abs().max() < 0.06
    assert faces.change[0] == 0 and faces.change[24] == 0 and (faces.change[1:20] > 0).all()


def test_pictures_without_a_face_are_told_so():
    faces = follow_faces(analyzer(), [np.full((120, 160, 3), 90, np.uint8)] * 10)
    assert (faces.presence == 0).all() and faces.landmarks.isnan().all() and set(faces.people.tolist()) == {0}
    with pytest.raises(ValueError, match="at least one frame"):
        follow_faces(analyzer(), [])


def test_two_faces_are_counted_and_the_larger_one_is_followed():
    frames, _ = talk()
    faces = follow_faces(analyzer(), on_canvas(frames[:9, ::2, ::2], frames[:9], size=(256, 460)))
    assert set(faces.people.tolist()) == {2}
    assert (faces.boxes[:, 0] > 180).all()


def test_a_covered_mouth_is_noticed():
    frames, _ = talk()
    clear, covered = (follow_faces(analyzer(), list(video)) for video in (frames[:9], masked(frames[:9])))
    assert clear.lips_seen.median() > 0.1 > 0.08 > covered.lips_seen.median()


def test_sharpness_and_blocks_tell_bad_pictures():
    frames, _ = talk()
    crop = torch.from_numpy(frames[:1, 64:192, 64:192].copy()).permute(0, 3, 1, 2).float() / 255
    soft = torch.nn.functional.avg_pool2d(crop, 9, 1, 4)
    assert sharpness(crop) > 0.02 > 0.012 > sharpness(soft)
    box = torch.tensor([40.0, 40, 216, 216])
    blocks = np.kron(frames[0, ::8, ::8], np.ones((8, 8, 1), np.uint8))
    assert blockiness(frames[0], box) < 1.3 and blockiness(blocks, box) > 5


class PlainAnalyzer:
    """The embedded analyzer as one without heat maps, such as MediaPipe's."""

    canonical = property(lambda self: analyzer().canonical)

    def detect(self, image):
        return analyzer().detect(image)


def test_an_analyzer_of_another_kind_is_asked_for_every_frame():
    frames, _ = talk()
    asked, followed = (follow_faces(which, frames[:6]) for which in (PlainAnalyzer(), analyzer()))
    assert asked.lips_seen.isnan().all()
    assert ((asked.landmarks - followed.landmarks).norm(dim=-1).mean(1) / followed.side).max() < 0.015
    assert (asked.pose - followed.pose).abs()[:, :3].max() < 0.06
    assert ((asked.pose[:, 6] / followed.pose[:, 6]) - 1).abs().max() < 0.05
