import torch

from vasa_hf.geometry.landmark_motion import posed_points, transfer_landmarks
from vasa_hf.geometry.landmarks import frontal_points


def face(seed):
    torch.manual_seed(seed)
    canonical = torch.randn(162, 3) * 0.3
    pose = torch.cat(
        [0.2 * torch.randn(5, 3), 0.5 + 0.02 * torch.randn(5, 2), torch.zeros(5, 1), 0.3 + torch.rand(5, 1)], 1
    )
    return canonical, pose, canonical[:, :2] + 0.02 * torch.randn(5, 162, 2)


def test_posed_points_undo_frontal_points():
    canonical, pose, shape = face(0)
    points = posed_points(shape, pose, canonical)
    torch.testing.assert_close(frontal_points(points, pose, canonical), shape, rtol=0, atol=1e-5)


def test_a_face_that_follows_itself_stays_itself():
    canonical, pose, shape = face(0)
    points = posed_points(shape, pose, canonical)
    moved, moved_pose = transfer_landmarks(points[0], pose[0], points, pose, canonical)
    torch.testing.assert_close(moved, points, rtol=0, atol=1e-5)
    torch.testing.assert_close(moved_pose, pose, rtol=0, atol=1e-5)


def test_another_face_keeps_its_shape_and_takes_the_change():
    canonical, pose, shape = face(0)
    driving = posed_points(shape, pose, canonical)
    own, own_pose = driving[0] * 0.5 + 0.1, pose[0].clone()
    own_pose[3:5] = own_pose[3:5] * 0.5 + 0.1
    own_pose[6] *= 0.5  # the same face, half as large
    moved, moved_pose = transfer_landmarks(own, own_pose, driving, pose, canonical)
    torch.testing.assert_close(moved, driving * 0.5 + 0.1, rtol=0, atol=1e-5)
    torch.testing.assert_close(moved_pose[:, 6], pose[:, 6] * 0.5)
    still, _ = transfer_landmarks(own, own_pose, driving[:1].expand(3, -1, -1), pose[:1].expand(3, -1), canonical)
    torch.testing.assert_close(still, own.expand(3, -1, -1), rtol=0, atol=1e-5)
