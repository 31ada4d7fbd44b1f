"""Rendered heads on a small hand-made mesh; one test on the real head, where it is at hand."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from vasa_hf.data.landmark_dynamics import FULL_EMOTION_SHAPES, FaceLabels
from vasa_hf.data.synthetic.heads import HeadState, RenderedHead, preview_states
from vasa_hf.data.synthetic.painting import centers, inverse_flow, look_up, paint_over
from vasa_hf.data.synthetic.raster import rasterize, soft_polygon
from vasa_hf.data.synthetic.rendered_faces import as_labels, random_state, render_set
from vasa_hf.geometry.landmarks import GROUPS, LANDMARK_IDS, eye_openness, rows
from vasa_hf.geometry.rotations import matrix_from_euler
from vasa_hf.head.ict import ict_mesh
from vasa_hf.head.mesh import HeadMesh
from vasa_hf.hub import resolve

SHARED = Path(__file__).parents[3] / "shared" / "data"
CM = 8.4  # of one canonical unit
POSE = torch.tensor([0.1, 0.05, -0.04, 0.5, 0.44, 0.0, 0.3])
BLINK = {"eyeBlink_L": 1.0, "eyeBlink_R": 1.0}


@pytest.fixture(scope="module")
def canonical():
    """The mean face (162, 3) that comes with the embedded analyzer."""
    return load_file(f"{resolve('vasa-small')}/face_analyzer/diffusion_pytorch_model.safetensors")["canonical"].float()


@pytest.fixture(scope="module")
def mesh(canonical):
    """A curved sheet through the mean face, with its landmarks as loose vertices, two lids and a jaw."""
    points = canonical[:152] * CM
    design = lambda x, y: torch.stack([torch.ones_like(x), y, x**2, y**2], 1)  # noqa: E731
    fit = torch.linalg.lstsq(design(*points[:, :2].T), points[:, 2:]).solution
    x, y = torch.meshgrid(torch.linspace(-9, 9, 40), torch.linspace(-12, 13, 56), indexing="xy")
    x, y = x.flatten(), y.flatten()
    sheet = torch.stack([x, y, (design(x, y) @ fit)[:, 0]], 1)
    number = torch.arange(len(sheet)).view(56, 40) + len(points)
    a, b, c, d = (number[i : 55 + i, j : 39 + j].flatten() for i, j in ((0, 0), (1, 0), (1, 1), (0, 1)))
    balls = []
    for group in ("left_eye", "right_eye"):
        balls.append(points[list(GROUPS[group])].mean(0) + torch.tensor([0.0, 0.0, 1.2]))
    vertices = torch.cat([points, sheet, torch.stack(balls)])
    shapes = torch.zeros(3, len(vertices), 3)
    for row, (top, bottom, group) in enumerate(((386, 374, "right_eye"), (159, 145, "left_eye"))):
        lid, gap = points[rows(top)[0]], (points[rows(bottom)] - points[rows(top)])[0, 1]
        near = torch.exp(-((vertices[:, :2] - lid[:2]) / torch.tensor([1.4, 0.7])).square().sum(1))
        shapes[row, :, 1] = 0.8 * gap * near
        shapes[row, :152, 1] *= torch.isin(torch.arange(152), torch.tensor(GROUPS[group])).float()
    mouth = points[list(GROUPS["lips_inner"]), 1].mean()
    shapes[2, :, 1] = 2.0 * ((vertices[:, 1] - mouth) / 0.5).clamp(0, 1) * (vertices[:, 0].abs() < 5)
    identity = torch.stack([vertices * torch.tensor([0.05, 0, 0]), vertices * torch.tensor([0, 0.05, 0])])
    centers = torch.zeros(2, len(vertices))
    centers[0, -2], centers[1, -1] = 1, 1
    return HeadMesh(
        vertices=vertices,
        identity=identity,
        expression=shapes,
        expression_names=("eyeBlink_L", "eyeBlink_R", "jawOpen"),
        skin=torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)]),
        inside=torch.zeros(0, 3, dtype=torch.long),
        teeth=torch.zeros(len(vertices), dtype=torch.bool),
        eye_centers=centers,
        eye_radius_cm=1.5,
        landmarks=torch.arange(152),
        origin_cm=torch.zeros(3),
    )


@pytest.fixture(scope="module")
def labels(canonical):
    rotation = matrix_from_euler(*POSE[:3])
    return POSE[6] * (canonical @ rotation.T)[:, :2] + POSE[3:5]


@pytest.fixture(scope="module")
def portrait(labels):
    """A smooth picture with dark irises in light eyes."""
    noise = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    picture = F.interpolate(noise, size=(128, 128), mode="bicubic").clamp(0, 1)[0] * 120 + 60
    for eye, iris in (("left_eye", "left_iris"), ("right_eye", "right_iris")):
        window, cover = soft_polygon(labels[list(GROUPS[eye])] * 128, 128)
        picture[:, window[0], window[1]] += cover * (220 - picture[:, window[0], window[1]])
        window, cover = soft_polygon(labels[list(GROUPS[iris][1:])] * 128, 128)
        picture[:, window[0], window[1]] += cover * (30 - picture[:, window[0], window[1]])
    return picture.permute(1, 2, 0).to(torch.uint8)


@pytest.fixture(scope="module")
def head(mesh, portrait, labels):
    return RenderedHead(mesh, portrait, labels, POSE)


def difference(a, b):
    return (a.float() - b.float()).abs().amax(-1)


def test_at_rest_the_photograph_comes_out(head, portrait):
    frame = head.render(HeadState(), size=128)
    assert difference(frame.image, portrait).max() <= 1
    torch.testing.assert_close(frame.landmarks, head.landmarks, atol=2e-4, rtol=0)
    torch.testing.assert_close(frame.pose, POSE, atol=1e-5, rtol=0)
    # Eyes drawn anew, because they turn by a hair, are those of the photograph.
    frame = head.render(HeadState(gaze=(2e-4, 0.0)), size=128)
    error = (frame.image.float() - portrait.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 36


def test_labels_are_where_the_vertices_are(head, canonical):
    rotation = POSE[:3] + torch.tensor([0.3, -0.15, 0.1])
    frame = head.render(HeadState(rotation=rotation, zoom=1.1, shift=(0.02, -0.01)), size=64)
    torch.testing.assert_close(frame.pose[:3], rotation, atol=1e-5, rtol=0)
    assert frame.pose[6] == pytest.approx(1.1 * POSE[6])
    # The mean face, put where the label says: all but the irises, whose balls stand a little before the lids.
    expected = frame.pose[6] * (canonical @ matrix_from_euler(*rotation).T)[:, :2] + frame.pose[3:5]
    above_chin = canonical[:152, 1] < canonical[rows(152)[0], 1] - 0.01
    assert (frame.landmarks[:152] - expected[:152])[above_chin].norm(dim=1).max() < 0.01
    assert (frame.landmarks[152:] - expected[152:]).norm(dim=1).max() < 0.02


def test_turning_one_way_and_the_other_moves_the_nose_apart(head):
    nose = rows(4)[0]
    left, right = (
        head.render(HeadState(rotation=POSE[:3] + torch.tensor([yaw, 0, 0])), 64).landmarks[nose, 0]
        for yaw in (0.3, -0.3)
    )
    assert left < POSE[3] - 0.02 and right > POSE[3] + 0.02  # yaw > 0 turns to the picture's left


def test_closing_lids_changes_the_eyes_alone(head, portrait, labels):
    wide, half, shut = (head.render(HeadState({name: share for name in BLINK}), 128) for share in (0.0, 0.5, 1.0))
    assert wide.eye_open.min() > 0.2 and shut.eye_open.max() < 0.02
    torch.testing.assert_close(half.eye_open, wide.eye_open / 2, atol=0.03, rtol=0)
    assert shut.expression[0] == 1
    changed = difference(shut.image, portrait) > 6
    places = changed.nonzero().flip(1) / 128
    eyes = labels[[*GROUPS["left_eye"], *GROUPS["right_eye"]]]
    width = (labels[rows(33)[0]] - labels[rows(133)[0]]).norm()
    assert len(places) > 20 and torch.cdist(places, eyes).amin(1).max() < width
    for iris in rows(468, 473):  # nothing dark or white is left where the eyes were
        x, y = (labels[iris] * 128).long().tolist()
        assert portrait[y, x].max() < 90 and 45 < shut.image[y, x].float().mean() < 200
    one = head.render(HeadState({"eyeBlink_R": 1.0}), 64)  # the person's right eye is the picture's left one
    assert one.eye_open[0] < 0.02 and one.eye_open[1] > 0.2


def test_gaze_moves_the_irises_and_nothing_else(head, portrait, labels):
    rest = head.render(HeadState(), 128)
    left = head.render(HeadState(gaze=(0.3, 0.0)), 128)
    down = head.render(HeadState(gaze=(0.0, 0.3)), 128)
    assert (left.iris_offset - rest.iris_offset)[:, 0].max() < -0.05
    assert (down.iris_offset - rest.iris_offset)[:, 1].min() > 0.05
    assert left.gaze[0] - rest.gaze[0] == pytest.approx(0.3, abs=0.15)
    torch.testing.assert_close(left.landmarks[:152], rest.landmarks[:152])
    places = (difference(left.image, portrait) > 6).nonzero().flip(1) / 128
    eyes = labels[[*GROUPS["left_eye"], *GROUPS["right_eye"], *rows(468, 473)]]
    assert torch.cdist(places, eyes).amin(1).max() < 0.04
    x, y = (left.landmarks[rows(468)[0]] * 128).long().tolist()
    assert left.image[y, x].float().mean() < 110  # the dark iris went along


def test_an_open_jaw_shows_a_dark_mouth(head):
    rest, wide = head.render(HeadState(), 128), head.render(HeadState({"jawOpen": 1.0}), 128)
    assert wide.mouth[0] > rest.mouth[0] + 0.1
    x, y = (wide.landmarks[rows(13, 14)].mean(0) * 128).long().tolist()
    assert wide.image[y, x].float().mean() < 45 < rest.image[y, x].float().mean()


def test_light_brightens_the_side_it_comes_from(head):
    dark, lit = (
        head.render(HeadState(), 128).image.float(),
        head.render(HeadState(light=(0.6, 0.0, 0.0)), 128).image.float(),
    )
    left, right = (head.landmarks[rows(i)[0]] * 128 for i in (127, 356))
    ratio = [(lit / dark.clamp_min(1))[int(p[1]) + 6, int(p[0]) + d].mean() for p, d in ((left, 8), (right, -8))]
    assert ratio[1] > 1.04 and ratio[0] < 0.96


def test_bad_input(head, mesh, portrait, labels):
    with pytest.raises(ValueError, match="`name` must be one of eyeBlink_L, .* but is 'frown'"):
        head.render(HeadState({"frown": 1.0}))
    with pytest.raises(ValueError, match=r"`expression`: jawOpen must lie in \[0, 1\], but is 1.5"):
        head.render(HeadState({"jawOpen": 1.5}))
    with pytest.raises(ValueError, match="`portrait` must be uint8 of shape"):
        RenderedHead(mesh, portrait.float(), labels, POSE)
    with pytest.raises(ValueError, match="`landmarks` and `pose` must be of shapes"):
        RenderedHead(mesh, portrait, labels[:68], POSE)


def test_random_states_show_whole_emotions_as_often_as_asked():
    """Each emotional state is one mixture at one strength; brows, lids and lips go together."""
    names = tuple(sorted({name for mixture in FULL_EMOTION_SHAPES.values() for name in mixture}))
    rng, seen = np.random.default_rng(0), []
    for _ in range(200):
        expression = random_state(POSE, names, rng, emotion_share=1.0).expression
        emotion = next(e for e, mixture in FULL_EMOTION_SHAPES.items() if set(mixture) == set(expression))
        strengths = [expression[name] / weight for name, weight in FULL_EMOTION_SHAPES[emotion].items()]
        assert 0.4 <= min(strengths) and max(strengths) <= 1.0001 and np.ptp(strengths) < 1e-5
        seen.append(emotion)
    assert set(seen) == set(FULL_EMOTION_SHAPES)
    mixtures = [set(mixture) for mixture in FULL_EMOTION_SHAPES.values()]
    states = [random_state(POSE, names, rng).expression for _ in range(1000)]
    assert 0.25 < np.mean([set(state) in mixtures for state in states]) < 0.36


def test_random_states_can_be_rendered_and_kept_as_labels(head, canonical, tmp_path):
    rng = np.random.default_rng(0)
    frames = [head.render(random_state(POSE, head.mesh.expression_names, rng), 64) for _ in range(6)]
    full = np.zeros((478, 3), np.float32)
    full[list(LANDMARK_IDS)] = canonical
    np.savez(
        tmp_path / "rendered.npz",
        names=np.array(["a"]),
        offsets=np.array([0, 6]),
        landmark_ids=np.array(LANDMARK_IDS),
        canonical=full,
        **as_labels(frames),
    )
    read = FaceLabels.load(tmp_path / "rendered.npz")
    expected = torch.stack([frame.landmarks for frame in frames])
    torch.testing.assert_close(read.landmarks, expected, atol=1 / 8192, rtol=0)
    assert read.eye_open.amin() < 0.1 < read.eye_open.amax() and read.pose[:, 0].std() > 0.05


# --- pieces ---------------------------------------------------------------------------------------------------------


def test_rasterizer_against_a_loop():
    points = torch.rand(30, 3) * 18 - 2
    faces = torch.randint(0, 30, (30, 3))
    pixels, hit, weights = rasterize(points, faces, 14)
    nearest = {}
    for face, corners in enumerate(points[faces].double()):
        edges = torch.stack([corners[1, :2] - corners[0, :2], corners[2, :2] - corners[0, :2]], 1)
        if torch.linalg.det(edges) >= -1e-6:
            continue
        for pixel in range(196):
            centre = torch.tensor([pixel % 14 + 0.5, pixel // 14 + 0.5], dtype=torch.float64)
            b, c = torch.linalg.solve(edges, centre - corners[0, :2]).tolist()
            if min(b, c, 1 - b - c) >= 0:
                depth = float(corners[0, 2] * (1 - b - c) + corners[1, 2] * b + corners[2, 2] * c)
                nearest[pixel] = min(nearest.get(pixel, (np.inf, 0)), (depth, face))
    assert pixels.tolist() == sorted(nearest)
    assert hit.tolist() == [nearest[pixel][1] for pixel in pixels.tolist()]
    depth = (points[faces[hit], 2] * weights).sum(1)
    torch.testing.assert_close(depth, torch.tensor([nearest[p][0] for p in pixels.tolist()]), atol=1e-3, rtol=0)


def test_soft_polygon_has_the_area_of_the_polygon():
    star = torch.tensor([[10.0, 2], [13, 9], [19, 10], [13, 12], [10, 19], [8, 12], [2, 10], [8, 9]])
    x, y = star.T
    area = (x * y.roll(-1) - x.roll(-1) * y).sum().abs() / 2
    window, cover = soft_polygon(star, 24)
    assert cover.sum() == pytest.approx(float(area), rel=0.06)
    assert soft_polygon(star - 100, 24)[1].numel() == 0  # wholly outside of the picture


def test_inverse_flow_undoes_a_smooth_flow():
    flow = F.interpolate(0.04 * torch.randn(1, 2, 4, 4), size=(32, 32), mode="bicubic")
    back = inverse_flow(flow)
    there = look_up(flow[0], centers(32) + back[0].permute(1, 2, 0))[None]
    assert (there + back).abs().max() < 2e-3


def test_painting_over_takes_the_colours_around():
    picture = torch.full((3, 32, 32), 0.4)
    mask = torch.zeros(1, 32, 32)
    mask[:, 10:20, 8:24] = 1
    spoilt = torch.where(mask > 0, 1.0, picture)
    torch.testing.assert_close(paint_over(spoilt, mask), picture)


needs_head = pytest.mark.skipif(not (SHARED / "head" / "ict_facekit.npz").is_file(), reason="needs head and portraits")


@needs_head
def test_a_rendered_set_is_written_with_its_labels(tmp_path):
    data, head = SHARED / "eval", SHARED / "head" / "ict_facekit.npz"
    options = {"cache": None, "people": 2, "clip_people": 0, "frames": 3, "minutes": 9.0, "seed": 0}
    render_set(argparse.Namespace(data=data, head=head, output=tmp_path, **options))
    frames, labels = np.load(tmp_path / "rendered.npy"), FaceLabels.load(tmp_path / "rendered.npz")
    assert frames.shape == (6, 256, 256, 3) and frames.std() > 20
    assert len(labels.names) == 2 and labels.offsets.tolist() == [0, 3, 6] and labels.landmarks.shape == (6, 162, 2)
    torch.testing.assert_close(labels.eye_open, eye_openness(labels.landmarks), atol=0.02, rtol=0)
    # The label says where the head is: the mean face, put there, lies near the points.
    mean = labels.canonical[labels.ids][:152] @ matrix_from_euler(*labels.pose[:, :3].T).mT
    placed = labels.pose[:, None, 6:7] * mean[..., :2] + labels.pose[:, None, 3:5]
    rigid = [row for row in GROUPS["rigid"] if row < 152]
    assert ((labels.landmarks[:, :152] - placed)[:, rigid].norm(dim=-1).mean(1) / labels.pose[:, 6]).max() < 0.12


@needs_head
def test_the_real_head_wears_a_portrait():
    mesh = ict_mesh(SHARED / "head" / "ict_facekit.npz")
    labels = FaceLabels.load(SHARED / "eval" / "portraits.npz")
    (path,) = (SHARED / "eval" / "portraits").glob(f"{labels.names[0]}.*")
    with Image.open(path) as image:
        portrait = torch.from_numpy(np.array(image.convert("RGB").resize((128, 128))))
    head = RenderedHead(mesh, portrait, labels.landmarks[0], labels.pose[0])
    assert head.head.error < 0.3  # centimetres
    frames = [head.render(state, 128) for state in preview_states(labels.pose[0])]
    error = (frames[0].image.float() - portrait.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 32
    assert frames[0].eye_open.min() > 0.2 and frames[2].eye_open.max() < 0.01
    assert frames[5].mouth[0] > frames[0].mouth[0] + 0.12
    for frame in frames:
        torch.testing.assert_close(frame.landmarks.clamp(0, 1), frame.landmarks)
