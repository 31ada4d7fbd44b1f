"""The head fitted to an image, and ICT-FaceKit's file checked."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.test_heads import canonical, mesh  # noqa: F401 (fixtures)
from vasa_hf.data.landmark_dynamics import FaceLabels
from vasa_hf.geometry.landmarks import fit_similarity, mouth_openness
from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler
from vasa_hf.head.fit import fit_head, personal_head, spread_weights
from vasa_hf.head.ict import ict_head, ict_mesh
from vasa_hf.head.parametric import NAMED
from vasa_hf.head.whole import whole_head

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_portraits = pytest.mark.skipif(not (SHARED / "eval" / "portraits.npz").is_file(), reason="needs portraits")


def test_the_fit_finds_who_it_is(mesh):  # noqa: F811
    weights = torch.tensor([1.2, -0.8])
    someone = mesh.vertices + torch.tensordot(weights, mesh.identity, 1)
    rotation = matrix_from_euler(*torch.tensor([0.4, 0.1, 0.2]))
    points = torch.zeros(162, 2)
    points[:152] = 0.03 * (someone[mesh.landmarks] @ rotation.T)[:, :2] + 0.5
    fitted = fit_head(mesh, points, matrix_from_euler(*torch.tensor([0.2, 0.0, 0.0])), expression_ridge=20.0)
    angles = euler_from_matrix(fitted.rotation)
    torch.testing.assert_close(angles, torch.tensor([0.4, 0.1, 0.2]), atol=0.03, rtol=0)
    assert fitted.error < 0.05
    placed = fitted.project(fitted.vertices)[mesh.landmarks, :2]
    torch.testing.assert_close(placed, points[:152], atol=2e-4, rtol=0)


def test_spread_values_are_exact_where_known_and_fade_far_away():
    points, values = torch.rand(12, 2) * 0.2 + 0.2, torch.randn(12, 2)
    weights = spread_weights(points, torch.cat([points, torch.tensor([[0.95, 0.95]])]), reach=0.15, softness=0.02)
    torch.testing.assert_close((weights @ values)[:12], values, atol=2e-2, rtol=0)
    assert (weights @ values)[12].abs().max() < 1e-3


@pytest.fixture(scope="module")
def whole():
    return whole_head()


def aligned(points, goal):
    """Points in the size and place of the goal."""
    rotation, translation, scale = fit_similarity(goal, points)
    return scale * points @ rotation.T + translation


def pictured(whole, **expression):
    """A person of other proportions: shape, landmarks [162, 2] in an image where the head is turned."""
    shape = torch.zeros(1, 14)
    shape[0, 3:8] = torch.tensor([1.5, 1.2, -1.0, 1.0, 0.8])
    weights, jaw = whole.named_expression(**expression)
    rotation = matrix_from_euler(*torch.tensor([0.25, 0.05, 0.1]))
    points = torch.zeros(162, 2)
    seen = whole(shape=shape, expression=weights, jaw=jaw).vertices[0, whole.landmarks]
    points[:152] = 0.03 * (seen @ rotation.T)[:, :2] + 0.5
    return shape, points


GUESS = matrix_from_euler(*torch.tensor([0.2, 0.0, 0.0]))


def test_a_personal_head_is_the_person(whole):
    shape, points = pictured(whole)
    person, fitted = personal_head(whole, points, GUESS)
    goal = whole(shape=shape).vertices[0, whole.landmarks]
    start, end = (aligned(head.template[head.landmarks], goal) - goal for head in (whole, person))
    assert end.norm(dim=1).mean() < 0.5 * start.norm(dim=1).mean()  # seen depths are guessed from the shapes
    assert end[:, :2].norm(dim=1).mean() < 0.35 * start[:, :2].norm(dim=1).mean()
    torch.testing.assert_close(euler_from_matrix(fitted.rotation), torch.tensor([0.25, 0.05, 0.1]), atol=0.02, rtol=0)


def test_a_personal_head_is_at_rest(whole):
    """A person who smiles with an open mouth in the image: the head has its mouth less open, and round eyes."""
    _, points = pictured(whole, mouthSmile_L=0.4, mouthSmile_R=0.4, jawOpen=0.3)
    person, fitted = personal_head(whole, points, GUESS)
    assert fitted.expression[NAMED.index("jawOpen")] > 0.15 and fitted.expression.argmax() == NAMED.index("jawOpen")
    flat = torch.zeros(162, 2)
    flat[:152] = person.template[whole.landmarks, :2]
    assert mouth_openness(flat)[0] < 0.5 * mouth_openness(points)[0]
    for joint, name in ((3, "left_eye"), (4, "right_eye")):
        ball = whole.faces[whole.region(name)].unique()
        before, after = ((h.template[ball] - h().joints[0, joint]).norm(dim=1) for h in (whole, person))
        torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    # Put on the image with the expression that was found, the landmarks are near where they were labelled.
    again = person.template + torch.tensordot(fitted.expression, whole.as_mesh().expression, 1)
    missed = (fitted.project(again)[whole.landmarks, :2] - points[:152]).norm(dim=1) / fitted.scale
    assert missed.mean() < 0.1  # centimetres


@needs_portraits
@pytest.mark.parametrize("kind", ["built-in", "ict"])
def test_real_portraits_can_be_fitted(whole, kind):
    head = whole if kind == "built-in" else ict_head(SHARED / "head" / "ict_facekit.npz", 60)
    labels = FaceLabels.load(SHARED / "eval" / "portraits.npz")
    for index in range(3):
        rotation = matrix_from_euler(*labels.pose[index, :3])
        person, fitted = personal_head(head, labels.landmarks[index], rotation)
        assert fitted.error < 0.35
        placed = fitted.project(fitted.vertices)[head.landmarks, :2]
        assert (placed - labels.landmarks[index, :152]).norm(dim=1).mean() / fitted.scale < 0.12
        assert (person.template - head.template).norm(dim=1).max() < 4  # no vertex is thrown about
        expression, jaw = person.named_expression(jawOpen=0.7)
        wide = torch.zeros(162, 2)
        wide[:152] = person(expression=expression, jaw=jaw).vertices[0, person.landmarks, :2]
        assert mouth_openness(wide)[0] > 0.12


# --- ICT-FaceKit's file -----------------------------------------------------------------------------------------------


def arrays(count=6500):
    materials = ["M_Face", "M_BackHead", "M_Teeth", "M_GumsTongue"]
    materials += [f"M_{part}{side}" for part in ("Sclera", "Iris") for side in ("Left", "Right")]
    return {
        "neutral": np.zeros((count, 3), np.float32),
        "faces": np.zeros((8, 4), np.int32),
        "identity": np.zeros((2, count, 3), np.float16),
        "expression": np.zeros((1, count, 3), np.float16),
        "expression_names": np.array(["jawOpen"]),
        "material": np.arange(8, dtype=np.int8),
        "material_names": np.array(materials),
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("faces", None, "`path` must hold the arrays neutral, faces, .* but .'faces'. are missing"),
        ("expression", np.zeros((2, 6500, 3)), r"expression must be of shape \(1, 6500, 3\), but is \(2, 6500, 3\)"),
        ("faces", np.full((8, 4), 6500), "faces must index its 6500 vertices"),
        ("material_names", np.array(["M_Face"] * 8), "material_names must hold .'M_BackHead'"),
        ("neutral", np.full((6500, 3), np.nan), "finite numbers"),
    ],
)
def test_other_files_are_refused(tmp_path, name, value, message):
    content = arrays() | {name: value}
    np.savez(tmp_path / "head.npz", **{key: array for key, array in content.items() if array is not None})
    for read in (ict_mesh, ict_head):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "head.npz")


def test_a_file_without_the_named_expressions_has_no_joints(tmp_path):
    np.savez(tmp_path / "head.npz", **arrays())
    with pytest.raises(ValueError, match="expression_names must hold .'jawLeft', "):
        ict_head(tmp_path / "head.npz")
