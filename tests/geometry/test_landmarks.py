import math

import pytest
import torch

from vasa_hf.geometry import landmarks as lm
from vasa_hf.geometry.crops import crop_matrix, transform_points
from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler


@pytest.fixture
def canonical():
    """A symmetric stand-in for a face: mirror pairs and points on the middle line, at random."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(70, 3, generator=generator)
    left[:, 0] -= 4
    right = left * torch.tensor([-1.0, 1.0, 1.0])
    middle = torch.randn(22, 3, generator=generator)
    middle[:, 0] = 0
    return torch.cat([left, right, middle])[torch.randperm(162, generator=generator)] * 0.2


def pose_tensor(yaw, pitch, roll, scale=0.3):
    return torch.tensor([yaw, pitch, roll, 0.5, 0.45, 0.0, scale])


def project(canonical, pose):
    rotation = matrix_from_euler(*pose[:3])
    return pose[6] * canonical @ rotation.T + pose[3:6]


def test_there_are_162_points_and_every_group_lies_among_them():
    assert lm.NUM_LANDMARKS == 162
    assert list(lm.LANDMARK_IDS) == sorted(lm.LANDMARK_IDS)
    assert lm.LANDMARK_IDS[-10:] == tuple(range(468, 478))  # the irises
    assert len(lm.GROUPS["lips_outer"]) == len(lm.GROUPS["lips_inner"]) == 20
    parts = [i for name, group in lm.GROUPS.items() if name != "rigid" for i in group]
    assert sorted(parts) == list(range(162))
    assert lm.rows(0, 477) == [0, 161]


def test_mirror_permutation_finds_each_partner(canonical):
    permutation = lm.mirror_permutation(canonical)
    mirrored = canonical * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(mirrored[permutation], canonical)
    with pytest.raises(ValueError, match="`canonical` must be left-right symmetric"):
        lm.mirror_permutation(torch.randn(162, 3, generator=torch.Generator().manual_seed(1)))


def test_fit_similarity_recovers_the_pose(canonical):
    pose = pose_tensor(0.4, -0.2, 0.3)
    rotation, translation, scale = lm.fit_similarity(project(canonical, pose), canonical)
    torch.testing.assert_close(euler_from_matrix(rotation), pose[:3], atol=1e-5, rtol=0)
    torch.testing.assert_close(translation, pose[3:6], atol=1e-5, rtol=0)
    torch.testing.assert_close(scale, pose[6], atol=1e-5, rtol=0)


def test_fit_similarity_is_a_minimum(canonical):
    torch.manual_seed(0)
    points = project(canonical, pose_tensor(0.2, 0.1, 0.0)) + 0.01 * torch.randn(162, 3)
    rotation, translation, scale = lm.fit_similarity(points, canonical)

    def error(rotation, translation, scale):
        return (scale * canonical @ rotation.T + translation - points).square().sum()

    best = error(rotation, translation, scale)
    turn = matrix_from_euler(torch.tensor(0.01), torch.tensor(-0.01), torch.tensor(0.01))
    assert error(turn @ rotation, translation, scale) > best
    assert error(rotation, translation + 0.005, scale) > best
    assert error(rotation, translation, scale * 1.01) > best


def test_fit_pose_from_flat_points(canonical):
    poses = torch.stack([pose_tensor(0.5, -0.2, 0.3), pose_tensor(-0.3, 0.25, -0.1)])
    points = torch.stack([project(canonical, pose)[:, :2] for pose in poses])
    start = matrix_from_euler(*(poses[:, :3] + torch.tensor([0.1, -0.1, 0.05])).T)
    rotation, translation, scale = lm.fit_pose(points, canonical, start, steps=40)
    # Half a degree: depths are only filled in step by step.
    torch.testing.assert_close(euler_from_matrix(rotation), poses[:, :3], atol=0.01, rtol=0)
    torch.testing.assert_close(translation[:, :2], poses[:, 3:5], atol=2e-3, rtol=0)
    torch.testing.assert_close(scale, poses[:, 6], atol=2e-3, rtol=0)


def test_a_pose_carried_into_a_crop_projects_to_the_carried_points(canonical):
    pose = pose_tensor(0.3, 0.2, 0.1) * torch.tensor([1, 1, 1, 200, 200, 200, 200.0])
    crop_from_image = torch.linalg.inv(crop_matrix(torch.tensor([90.0, 110.0]), torch.tensor(150.0), 0.5))
    inside = lm.transform_pose(pose, crop_from_image)
    expected = transform_points(crop_from_image, project(canonical, pose)[:, :2])
    torch.testing.assert_close(project(canonical, inside)[:, :2], expected, atol=1e-5, rtol=0)


def eye_points(lid_gap, iris=(0.0, 0.0)):
    """Both eyes 1 wide, 2 apart, with given lid gap and iris offset."""
    points = torch.zeros(162, 2)
    for corners, lids, center, middle in (((33, 133), (159, 145), 468, -1.5), ((263, 362), (386, 374), 473, 1.5)):
        a, b, top, bottom, irises = lm.rows(*corners, *lids, center)
        points[a], points[b] = torch.tensor([middle - 0.5, 0.0]), torch.tensor([middle + 0.5, 0.0])
        points[top], points[bottom] = torch.tensor([middle, -lid_gap / 2]), torch.tensor([middle, lid_gap / 2])
        points[irises] = torch.tensor([middle + iris[0], iris[1]])
    return points


def test_openness_measures():
    torch.testing.assert_close(lm.eye_openness(eye_points(0.3)), torch.tensor([0.3, 0.3]))
    torch.testing.assert_close(lm.eye_openness(eye_points(0.0) * 50), torch.tensor([0.0, 0.0]))
    points = eye_points(0.3)  # outer corners at -2 and 1: three apart
    upper, lower, left, right = lm.rows(13, 14, 61, 291)
    points[upper], points[lower] = torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.6])
    points[left], points[right] = torch.tensor([-0.6, 2.3]), torch.tensor([0.6, 2.3])
    outer = (points[lm.rows(33)[0]] - points[lm.rows(263)[0]]).norm()
    torch.testing.assert_close(lm.mouth_openness(points), torch.tensor([0.6, 1.2]) / outer)


def test_iris_offset_and_the_directions_of_gaze():
    offset = lm.iris_offset(eye_points(0.3, (0.1, 0.05)))
    torch.testing.assert_close(offset, torch.tensor([[0.1, 0.05], [0.1, 0.05]]))
    ahead, level = pose_tensor(0, 0, 0), -lm._IRIS_RAISE
    torch.testing.assert_close(lm.gaze_angles(eye_points(0.3, (0, level)), ahead), torch.zeros(2), atol=1e-6, rtol=0)
    left = lm.gaze_angles(eye_points(0.3, (-0.2, level)), ahead)
    assert math.isclose(float(left[0]), math.asin(0.5), rel_tol=1e-4)  # iris to the image's left: yaw > 0
    down = lm.gaze_angles(eye_points(0.3, (0, level + 0.2)), ahead)
    assert math.isclose(float(down[1]), math.asin(0.5), rel_tol=1e-4)
    # A head turned to the left whose irises stay amid the eyes looks to the left too.
    assert lm.gaze_angles(eye_points(0.3, (0, level)), pose_tensor(0.4, 0, 0))[0] > 0.1


def test_gaze_does_not_change_when_the_image_is_turned():
    points, turn = eye_points(0.3, (-0.15, 0.02)), 0.3
    matrix = crop_matrix(torch.tensor([3.0, 4.0]), torch.tensor(10.0), turn)
    turned = transform_points(matrix, points)
    a, b = lm.gaze_angles(points, pose_tensor(0, 0, 0)), lm.gaze_angles(turned, pose_tensor(0, 0, turn))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_frontal_points_undo_the_pose(canonical):
    for pose in (pose_tensor(0.5, -0.3, 0.2), pose_tensor(-0.6, 0.2, -0.4)):
        frontal = lm.frontal_points(project(canonical, pose)[:, :2], pose, canonical)
        torch.testing.assert_close(frontal, canonical[:, :2], atol=1e-4, rtol=0)


def test_every_expression_weight_names_a_measure(canonical):
    measures = lm.shape_measures(canonical[:, :2])
    assert set(measures) == set(lm._MEASURES)
    assert tuple(lm._EXPRESSION_WEIGHTS) == lm.EXPRESSIONS
    for weights in lm._EXPRESSION_WEIGHTS.values():
        assert set(weights) <= set(measures)
