"""Skinning against plain loops in numpy and against closed forms."""

import numpy as np
import pytest
import torch

from vasa_hf.head.skinning import pose_offsets, rotation_from_vector, skin, world_transforms

PARENTS = (-1, 0, 1, 1, 1)


def loop_rotation(vector):
    """The matrix exponential by its series."""
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    total, term = np.eye(3), np.eye(3)
    for k in range(1, 40):
        term = term @ cross / k
        total = total + term
    return total


def loop_skin(rest, joints, vectors, parents, weights, pose_basis):
    """One head as the SMPL paper writes it: 4x4 matrices, one vertex after another."""
    rotations = [loop_rotation(vector) for vector in vectors]
    feature = np.concatenate([(rotation - np.eye(3)).ravel() for rotation in rotations[1:]])
    world = []
    for joint, parent in enumerate(parents):
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = joints[joint] - (joints[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    out = np.zeros_like(rest)
    for v in range(len(rest)):
        place = rest[v].copy()
        for k in range(len(feature)):
            place += feature[k] * pose_basis[k, v]
        for joint in range(len(parents)):
            back = np.eye(4)
            back[:3, 3] = -joints[joint]
            out[v] += weights[v, joint] * (world[joint] @ back @ np.append(place, 1))[:3]
    return out, np.stack([matrix[:3, 3] for matrix in world])


def random_head(batch=2, count=7, dtype=torch.float64):
    rest, joints = torch.randn(batch, count, 3, dtype=dtype), torch.randn(batch, 5, 3, dtype=dtype)
    weights = torch.rand(count, 5, dtype=dtype)
    vectors = torch.randn(batch, 5, 3, dtype=dtype)
    return rest, joints, vectors, weights / weights.sum(1, keepdim=True), torch.randn(36, count, 3, dtype=dtype) * 0.1


def test_against_a_loop():
    rest, joints, vectors, weights, basis = random_head()
    vertices, placed = skin(rest, joints, rotation_from_vector(vectors), PARENTS, weights, basis)
    for b in range(2):
        expected = loop_skin(
            *(x.numpy() for x in (rest[b], joints[b], vectors[b])), PARENTS, weights.numpy(), basis.numpy()
        )
        np.testing.assert_allclose(vertices[b], expected[0], atol=1e-12)
        np.testing.assert_allclose(placed[b], expected[1], atol=1e-12)


def test_no_rotation_leaves_everything():
    rest, joints, vectors, weights, basis = random_head()
    vertices, placed = skin(rest, joints, rotation_from_vector(0 * vectors), PARENTS, weights, basis)
    torch.testing.assert_close(vertices, rest)
    torch.testing.assert_close(placed, joints)


def test_the_root_moves_all_rigidly_about_itself():
    rest, joints, vectors, weights, basis = random_head()
    vectors[:, 1:] = 0
    rotation = rotation_from_vector(vectors)
    vertices, placed = skin(rest, joints, rotation, PARENTS, weights, basis)
    root = joints[:, :1]
    torch.testing.assert_close(vertices, (rest - root) @ rotation[:, 0].mT + root)
    torch.testing.assert_close(placed, (joints - root) @ rotation[:, 0].mT + root)


def test_a_vertex_of_one_joint_turns_about_it_and_its_parents():
    rest, joints, vectors, _, _ = random_head()
    weights = torch.zeros(7, 5, dtype=torch.float64)
    weights[:, 2] = 1
    rotation = rotation_from_vector(vectors)
    vertices, _ = skin(rest, joints, rotation, PARENTS, weights)
    turned, placed = world_transforms(rotation, joints, PARENTS)
    torch.testing.assert_close(turned[:, 2], rotation[:, 0] @ rotation[:, 1] @ rotation[:, 2])
    torch.testing.assert_close(vertices, (rest - joints[:, 2:3]) @ turned[:, 2].mT + placed[:, 2:3])


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-4, 1.0, 3.0])
def test_rotation_vectors(size):
    vector = torch.tensor([[0.6, 0.0, -0.8]], dtype=torch.float64) * size
    rotation = rotation_from_vector(vector)
    np.testing.assert_allclose(rotation[0], loop_rotation(vector[0].numpy()), atol=1e-13)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64)[None])
    assert torch.autograd.gradcheck(rotation_from_vector, vector.requires_grad_())


def test_gradients_also_at_rest():
    rest, joints, vectors, weights, basis = random_head(batch=1, count=3)
    vectors[:, 2:] = 0

    def posed(rest, joints, vectors, weights, basis):
        return skin(rest, joints, rotation_from_vector(vectors), PARENTS, weights, basis)

    inputs = [x.requires_grad_() for x in (rest, joints, vectors, weights, basis)]
    assert torch.autograd.gradcheck(posed, inputs)


def test_pose_offsets_do_not_see_the_root():
    _, _, vectors, _, basis = random_head()
    rotation = rotation_from_vector(vectors)
    other = rotation.clone()
    other[:, 0] = torch.eye(3)
    assert torch.equal(pose_offsets(rotation, basis), pose_offsets(other, basis))
    assert pose_offsets(rotation, basis).abs().max() > 0.1
