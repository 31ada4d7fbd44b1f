"""A FLAME head from end to end, on synthetic files of FLAME's format: conversion, skinning, landmarks, a talker."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import vasa_hf
from tests.data.test_heads import POSE, canonical, labels, portrait  # noqa: F401 (fixtures)
from tests.head.test_parametric import landmarks_of
from tests.head.test_skinning import loop_skin
from tests.testing_utils.flame_format import flame_arrays, someone_else
from vasa_hf.convert.flame import FlameSizes, convert_flame
from vasa_hf.data.synthetic.heads import HeadState, RenderedHead
from vasa_hf.geometry.landmarks import GROUPS, eye_openness, mouth_openness, rows
from vasa_hf.head.flame import flame_head
from vasa_hf.head.ict import ict_head
from vasa_hf.head.loading import load_head, load_parametric_head
from vasa_hf.head.parametric import FLAME_AXES, NAMED, PARENTS
from vasa_hf.head.registration import label_components
from vasa_hf.head.whole import whole_head

ICT = Path(__file__).parents[3] / "shared" / "data" / "head" / "ict_facekit.npz"


def converted(folder, head):
    """(path of the safetensors, arrays of the pickle, order of the vertices)."""
    arrays, sizes, order = flame_arrays(head)
    (folder / "generic_model.pkl").write_bytes(pickle.dumps(arrays, 2))
    report = convert_flame(folder / "generic_model.pkl", folder / "flame.safetensors", "2020", sizes)
    assert any(note.startswith("landmarks found") and note.endswith("in the mean") for note in report.notes)
    return folder / "flame.safetensors", arrays, order


@pytest.fixture(scope="module")
def source():
    return someone_else(whole_head())


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    return converted(tmp_path_factory.mktemp("flame"), source)


@pytest.fixture(scope="module")
def head(written):
    return load_parametric_head(written[0])


def test_posing_is_flames_own(written, head):
    """The file's arrays, posed by plain loops in FLAME's axes, against the head in ours."""
    _, arrays, _ = written
    rng = np.random.default_rng(1)
    count = len(arrays["v_template"])
    kept = rng.choice(count, 40, replace=False)
    shape, expression = rng.normal(size=(1, 14)), rng.normal(size=(1, 46)) * 0.3
    poses = rng.normal(size=(5, 3)) * 0.4  # global, neck, jaw, left eye, right eye, in FLAME's axes
    someone = arrays["v_template"] + arrays["shapedirs"][..., :14] @ shape[0]
    rest = someone + arrays["shapedirs"][..., 14:] @ expression[0]
    joints, basis = arrays["J_regressor"] @ someone, arrays["posedirs"].transpose(2, 0, 1)[:, kept]
    expected, placed = loop_skin(rest[kept], joints, poses, PARENTS, arrays["weights"][kept], basis)
    ours = torch.from_numpy(poses * FLAME_AXES).float()
    out = head(
        shape=torch.from_numpy(shape).float(),
        expression=torch.from_numpy(expression).float(),
        global_pose=ours[None, 0],
        neck=ours[None, 1],
        jaw=ours[None, 2],
        eyes=ours[3:].reshape(1, 6),
    )
    origin = arrays["v_template"][0] * FLAME_AXES * 100 - head.template[0].numpy()
    np.testing.assert_allclose(out.vertices[0, kept], expected * FLAME_AXES * 100 - origin, atol=2e-4)
    np.testing.assert_allclose(out.joints[0], placed * FLAME_AXES * 100 - origin, atol=2e-4)


def test_landmarks_are_found(source, written, head):
    _, _, order = written
    expected = source.template[source.landmarks]
    distance = (source.template[torch.from_numpy(order)][head.landmarks] - expected).norm(dim=1)
    on_rings = [i for name in ("left_eye", "right_eye", "lips_inner", "lips_outer") for i in GROUPS[name]]
    assert distance.mean() < 0.25 and distance[on_rings].mean() < 0.15
    # Upper and lower lips are not confused: their vertices part when the jaw opens.
    opened = landmarks_of(head, jaw=torch.tensor([[0.25, 0.0, 0.0]]))
    upper, lower = rows(81, 82, 13, 312, 311), rows(178, 87, 14, 317, 402)
    assert (opened[lower, 1] - opened[upper, 1]).min() > 0.5
    assert head.template[head.landmarks[rows(4)[0]], 2] < 0  # the origin is that of the landmarks' canonical face


def test_regions_and_mouth(source, head):
    count = len(source.faces)
    same = head.regions[:count] == source.regions
    assert (
        same[source.region("left_eye", "right_eye")].all()
        and same[source.region("scalp", "neck", "face")].float().mean() > 0.9
    )
    assert head.region("teeth").sum() > 20
    moved = (head(jaw=torch.tensor([[0.2, 0.0, 0.0]])).vertices[0] - head.template).norm(dim=1)
    teeth = head.faces[head.region("teeth")].unique()
    assert (moved[teeth] > 1).any() and (moved[teeth] < 1e-3).any()


def test_named_expressions_are_found(source, head):
    """What only combinations of nameless expressions can do comes out under its name."""

    def motion(of, **weights):
        expression, jaw = of.named_expression(**weights)
        return (of(expression=expression, jaw=jaw).vertices[0] - of.template)[of.landmarks]

    for name in ("jawOpen", "eyeBlink_L", "mouthSmile_R", "mouthPucker", "browInnerUp_L", "mouthUpperUp_L"):
        wanted, found = motion(source, **{name: 1.0}), motion(head, **{name: 1.0})
        assert (found - wanted).norm() < 0.35 * wanted.norm(), name
    rest = landmarks_of(head)
    expression, jaw = head.named_expression(jawOpen=1.0)
    assert jaw[0, 0] > 0.2 and mouth_openness(landmarks_of(head, expression=expression, jaw=jaw))[0] > 0.2
    expression, jaw = head.named_expression(eyeBlink_R=1.0)
    shut = eye_openness(landmarks_of(head, expression=expression, jaw=jaw))
    assert shut[0] < 0.35 * eye_openness(rest)[0] and shut[1] > 0.8 * eye_openness(rest)[1]


def test_it_wears_a_photograph(written, canonical, portrait, labels):  # noqa: F811
    mesh = load_head(written[0], canonical)
    assert mesh.expression_names == NAMED and len(mesh.inside) and mesh.teeth.any()
    wearer = RenderedHead(mesh, portrait, labels, POSE)
    assert wearer.head.error < 0.3
    rest, talking = wearer.render(HeadState(), 128), wearer.render(HeadState({"jawOpen": 0.6}), 128)
    assert (rest.image.int() - portrait.int()).abs().max() <= 1
    assert talking.mouth[0] > rest.mouth[0] + 0.1
    shut = wearer.render(HeadState({"eyeBlink_L": 1.0, "eyeBlink_R": 1.0}), 64)
    assert shut.eye_open.max() < 0.03
    turned = wearer.render(HeadState(rotation=POSE[:3] + torch.tensor([0.3, 0.0, 0.0])), 64)
    assert turned.landmarks[rows(4)[0], 0] < rest.landmarks[rows(4)[0], 0] - 0.02


def test_a_file_without_landmarks_is_completed_when_it_is_loaded(written, tmp_path, head):
    path, arrays, _ = written
    sizes = FlameSizes(len(arrays["v_template"]), len(arrays["f"]), 14, 46)
    convert_flame(path.with_name("generic_model.pkl"), tmp_path / "flame.safetensors", "2020", sizes, register=False)
    assert (tmp_path / "flame.safetensors").stat().st_size < path.stat().st_size
    other = flame_head(tmp_path / "flame.safetensors")
    assert torch.equal(other.landmarks, head.landmarks)
    torch.testing.assert_close(other.template, head.template)


def test_what_is_no_head_is_refused(tmp_path):
    """A ball with FLAME's arrays."""
    head = whole_head()
    ball = torch.nn.functional.normalize(head.template - torch.tensor([0.0, 3.0, 9.0]), dim=1) * 12
    eyes = head.region("left_eye", "right_eye")
    kept = torch.zeros(len(ball), dtype=torch.bool)
    kept[head.faces[eyes]] = True
    head.template.copy_(torch.where(kept[:, None], head.template + torch.tensor([0.0, 0.0, 9.0]), ball))
    arrays, sizes, _ = flame_arrays(head)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(arrays))
    with pytest.raises(ValueError, match="`source` must be a FLAME head, nothing was written: `arrays` must be a head"):
        convert_flame(tmp_path / "x.pkl", tmp_path / "flame.safetensors", sizes=sizes)
    assert not (tmp_path / "flame.safetensors").exists()


def test_other_files_are_refused(tmp_path, canonical):  # noqa: F811
    with pytest.raises(
        ValueError, match="`path` must be ict_facekit.npz or a .safetensors file of a head .*flame.pkl'"
    ):
        load_head(tmp_path / "flame.pkl", canonical)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="`path` must be a file that `vasa-hf convert flame` wrote"):
        load_head(tmp_path / "x.safetensors", canonical)


def test_a_saved_head_and_the_built_in_one_are_loaded(tmp_path):
    head = vasa_hf.load_parametric_head()
    assert isinstance(head, vasa_hf.ParametricHead)
    head.save(tmp_path / "head.safetensors")
    torch.testing.assert_close(load_parametric_head(tmp_path / "head.safetensors").named, head.named)


def test_components():
    faces = torch.tensor([[0, 1, 2], [2, 3, 4], [7, 6, 5], [9, 8, 7]])
    label = label_components(faces, 11)
    assert label.tolist() == [0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 10]


@pytest.mark.slow
@pytest.mark.skipif(not ICT.is_file(), reason="no head/ict_facekit.npz")
def test_another_mesh_of_another_person(tmp_path):
    """ICT-FaceKit's head, whose landmarks are known, in FLAME's format: no vertex is one of the built-in head."""
    source = ict_head(ICT, 20)
    path, _, order = converted(tmp_path, source)
    head = load_parametric_head(path)
    distance = (source.template[torch.from_numpy(order)][head.landmarks] - source.template[source.landmarks]).norm(
        dim=1
    )
    assert distance.mean() < 0.35
    rest = landmarks_of(head)
    measures = {
        "jawOpen": (lambda points: mouth_openness(points)[0], 0.15),
        "mouthPucker": (lambda points: mouth_openness(points)[1], -0.03),
        "eyeBlink_L": (lambda points: eye_openness(points)[1], -0.15),
    }
    for name, (measure, change) in measures.items():
        expression, jaw = head.named_expression(**{name: 1.0})
        moved = measure(landmarks_of(head, expression=expression, jaw=jaw)) - measure(rest)
        assert moved / change > 1, name
