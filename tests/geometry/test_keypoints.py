import math

import pytest
import torch

from vasa_hf.geometry.keypoints import (
    EYE_KEYPOINTS,
    LIP_KEYPOINTS,
    NUM_KEYPOINTS,
    KeypointMotion,
    absolute_motion,
    euler_degrees,
    euler_matrix,
    expression_friendly_scale,
    eye_ratios,
    head_pose_degrees,
    hull_volume,
    lip_ratio,
    relative_motion,
    transform_keypoints,
)


def faces(batch, seed=0):
    g = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    kp, exp = 0.3 * random(batch, NUM_KEYPOINTS, 3), 0.05 * random(batch, NUM_KEYPOINTS, 3)
    scale, t = 1.3 + 0.1 * random(batch, 1), 0.1 * random(batch, 3)
    return KeypointMotion(kp, exp, scale, t, *(20 * random(3, batch)))


def rotation_about(axis, degrees):
    """Rotation of column vectors, from the matrix exponential of the axis' cross product."""
    x, y, z = (torch.eye(3)[axis] * math.radians(degrees)).tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


def test_rotation_is_roll_after_yaw_after_pitch_for_points_as_rows():
    expected = (rotation_about(2, 15) @ rotation_about(1, -40) @ rotation_about(0, 25)).T.float()
    torch.testing.assert_close(euler_matrix(*torch.tensor([25.0, -40.0, 15.0])), expected, atol=1e-6, rtol=0)


def test_angles_come_back_from_the_matrix():
    angles = torch.tensor([[20.0, -70.0, 170.0], [80.0, 10.0, -30.0], [0.0, 0.0, 0.0]]).T
    torch.testing.assert_close(torch.stack(euler_degrees(euler_matrix(*angles))), angles, atol=1e-4, rtol=0)


def test_head_pose_is_the_expected_bin():
    logits = torch.full((2, 66), -100.0)
    logits[0, 40] = logits[1, 40] = logits[1, 42] = 100.0
    torch.testing.assert_close(head_pose_degrees(logits), torch.tensor([40 * 3 - 97.5, 41 * 3 - 97.5]))
    decoded = torch.tensor([[12.5], [3.0]])
    assert head_pose_degrees(decoded) is decoded


def test_transform_against_a_loop_over_points():
    motion = faces(2)
    result = transform_keypoints(motion)
    for face in range(2):
        for point in range(NUM_KEYPOINTS):
            expected = motion.kp[face, point] @ motion.rotation[face] + motion.exp[face, point]
            expected = motion.scale[face] * expected + motion.t[face] * torch.tensor([1.0, 1.0, 0.0])
            torch.testing.assert_close(result[face, point], expected, atol=1e-6, rtol=1e-5)


def test_vector_goes_there_and_back():
    motion = faces(3)
    vector = motion.to_vector()
    assert vector.shape == (3, 70)
    torch.testing.assert_close(vector[:, 66], motion.t[:, 2])
    torch.testing.assert_close(vector[:, 67:], torch.stack([motion.pitch, motion.yaw, motion.roll], 1))
    back = KeypointMotion.from_vector(vector, motion.kp)
    torch.testing.assert_close(transform_keypoints(back), transform_keypoints(motion))
    one = KeypointMotion.from_vector(vector, motion.kp[:1])
    assert one.kp.shape == (3, NUM_KEYPOINTS, 3)
    with pytest.raises(ValueError, match="`vector`"):
        KeypointMotion.from_vector(vector[:, :69], motion.kp)
    with pytest.raises(ValueError, match="`kp`"):
        KeypointMotion.from_vector(vector, motion.kp[:2])


def test_rows_are_taken_and_moved_together():
    motion = faces(4)
    part = motion[1:3].to(torch.float64)
    assert len(part) == 2 and part.scale.dtype == torch.float64
    torch.testing.assert_close(part.yaw, motion.yaw[1:3].double())
    with pytest.raises(ValueError, match="`index`"):
        motion[1]


def test_a_driver_that_does_not_move_leaves_the_source():
    source, driver = faces(1), faces(1, seed=1)
    for region in ("all", "expression", "pose", "lips", "eyes"):
        moved = relative_motion(source, driver.expand(3), driver, region)
        expected = transform_keypoints(source).expand(3, -1, -1)
        torch.testing.assert_close(transform_keypoints(moved), expected, atol=1e-6, rtol=0)


def test_the_source_driven_by_itself_follows_exactly():
    frames = faces(5)
    frames.kp = frames.kp[:1].expand(5, -1, -1)
    followed = transform_keypoints(relative_motion(frames[:1], frames, frames[:1]))
    torch.testing.assert_close(followed, transform_keypoints(frames), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("region", "points"), [("lips", LIP_KEYPOINTS), ("eyes", EYE_KEYPOINTS)])
def test_a_region_moves_its_points_alone(region, points):
    source, driver = faces(1), faces(3, seed=1)
    for moved in (relative_motion(source, driver, driver[:1], region), absolute_motion(source, driver, region)):
        changed = (moved.exp - source.exp).abs().amax((0, 2)) > 0
        assert changed.nonzero().flatten().tolist() == sorted(points)
        torch.testing.assert_close(moved.yaw, source.yaw.expand(3))
        torch.testing.assert_close(moved.scale, source.scale.expand(3, 1))


def test_pose_alone_and_expression_alone_share_nothing():
    source, driver = faces(1), faces(3, seed=1)
    for drive in (
        lambda r: relative_motion(source, driver, driver[:1], r),
        lambda r: absolute_motion(source, driver, r),
    ):
        everything, pose, expression = drive("all"), drive("pose"), drive("expression")
        torch.testing.assert_close(pose.exp, source.exp.expand(3, -1, -1))
        torch.testing.assert_close(pose.rotation, everything.rotation)
        torch.testing.assert_close(expression.exp, everything.exp)
        torch.testing.assert_close(expression.rotation, source.rotation.expand(3, -1, -1), atol=1e-6, rtol=0)


def test_absolute_driving_keeps_the_shape_of_the_face():
    source, driver = faces(1), faces(3, seed=1)
    moved = absolute_motion(source, driver)
    for point in (0, 7, 10):
        torch.testing.assert_close(moved.exp[:, point], source.exp[:, point].expand(3, 3))
    torch.testing.assert_close(moved.exp[:, 3, 1], driver.exp[:, 3, 1])
    torch.testing.assert_close(moved.exp[:, 3, 0], source.exp[:, 3, 0].expand(3))
    torch.testing.assert_close(moved.exp[:, 9, 1:], driver.exp[:, 9, 1:])
    torch.testing.assert_close(moved.scale, source.scale.expand(3, 1))
    torch.testing.assert_close(moved.pitch, driver.pitch)


def test_unknown_region_raises():
    motion = faces(1)
    with pytest.raises(ValueError, match="`region`"):
        relative_motion(motion, motion, motion, "nose")
    with pytest.raises(ValueError, match="`region`"):
        absolute_motion(motion, motion, "nose")


def test_hull_volume_of_a_tetrahedron_with_points_inside():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    weights = torch.rand(17, 4, generator=torch.Generator().manual_seed(0)) + 0.05
    inside = weights / weights.sum(1, keepdim=True) @ corners
    both = torch.stack([torch.cat([corners, inside]), 2 * torch.cat([inside, corners]) + 5])
    torch.testing.assert_close(hull_volume(both), torch.tensor([1.0, 8.0]), rtol=1e-4, atol=0)


def test_hull_volume_against_counting():
    """Share of a box' random points that no direction separates from the keypoints."""
    g = torch.Generator().manual_seed(0)
    points = torch.randn(1, 21, 3, generator=g)
    low, high = points.amin(1), points.amax(1)
    box = low + (high - low) * torch.rand(4000, 3, generator=g)
    directions = torch.nn.functional.normalize(torch.randn(4000, 3, generator=g), dim=-1)
    inside = ((box @ directions.T) <= (points[0] @ directions.T).amax(0)).all(1).float().mean()
    torch.testing.assert_close(hull_volume(points), inside * (high - low).prod(-1), rtol=0.08, atol=0)


def test_expression_friendly_scale_is_the_ratio_of_sizes_to_three_halves():
    points = faces(1).kp
    scale = expression_friendly_scale(1.5 * points + 1, points)
    torch.testing.assert_close(scale, torch.full((1, 1, 1), 1.5**1.5), rtol=1e-4, atol=0)


def test_openness_of_eyes_and_lips():
    landmarks = torch.zeros(2, 203, 2)
    landmarks[:, 12, 0], landmarks[:, 18, 1] = 4, 1  # left eye, 4 wide and 1 open
    landmarks[:, 36, 0], landmarks[:, 42, 1] = 4, 2
    landmarks[1, 66, 0], landmarks[1, 102, 1] = 10, 3
    torch.testing.assert_close(eye_ratios(landmarks), torch.tensor([[0.25, 0.5]] * 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(lip_ratio(landmarks), torch.tensor([[0.0], [0.3]]), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="`landmarks`"):
        lip_ratio(landmarks[:, :106])
