"""The head with joints: the formula on a small one, the built-in one, and ICT-FaceKit's where it is at hand."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.head.test_skinning import loop_skin
from vasa_hf.geometry.landmarks import GROUPS, eye_openness, mouth_openness, rows
from vasa_hf.head.fit import fit_head
from vasa_hf.head.ict import ict_head
from vasa_hf.head.mean_face import mean_face
from vasa_hf.head.parametric import JOINTS, NAMED, PARENTS, REGIONS, ParametricHead
from vasa_hf.head.skinning import rotation_from_vector
from vasa_hf.head.template import CM
from vasa_hf.head.whole import whole_head

ICT = Path(__file__).parents[3] / "shared" / "data" / "head" / "ict_facekit.npz"


def small_head(dtype=torch.float64, count=8):
    weights, regressor = torch.rand(count, 5, dtype=dtype), torch.rand(5, count, dtype=dtype)
    return ParametricHead(
        template=torch.randn(count, 3, dtype=dtype),
        shape_basis=torch.randn(2, count, 3, dtype=dtype),
        expression_basis=torch.randn(3, count, 3, dtype=dtype),
        faces=torch.randint(0, count, (6, 3)),
        regions=torch.arange(6) % len(REGIONS),
        joint_regressor=regressor / regressor.sum(1, keepdim=True),
        skinning_weights=weights / weights.sum(1, keepdim=True),
        landmarks=torch.zeros(152, dtype=torch.long),
        named=torch.zeros(len(NAMED), 6, dtype=dtype),
        pose_basis=0.1 * torch.randn(36, count, 3, dtype=dtype),
    )


def random_state(batch=2, dtype=torch.float64):
    widths = {"shape": 2, "expression": 3, "neck": 3, "jaw": 3, "eyes": 6, "global_pose": 3, "translation": 3}
    return {name: torch.randn(batch, width, dtype=dtype) for name, width in widths.items()}


def test_the_formula_against_a_loop():
    head, state = small_head(), random_state()
    out = head(**state)
    for b in range(2):
        someone, rest = head.template.clone(), None
        for k in range(2):
            someone += state["shape"][b, k] * head.shape_basis[k]
        joints = torch.stack([sum(head.joint_regressor[j, v] * someone[v] for v in range(8)) for j in range(5)])
        rest = someone.clone()
        for k in range(3):
            rest += state["expression"][b, k] * head.expression_basis[k]
        names = ("global_pose", "neck", "jaw")
        vectors = [state[name][b].numpy() for name in names] + [
            state["eyes"][b, :3].numpy(),
            state["eyes"][b, 3:].numpy(),
        ]
        weights, basis = head.skinning_weights.numpy(), head.pose_basis.numpy()
        vertices, placed = loop_skin(rest.numpy(), joints.numpy(), vectors, PARENTS, weights, basis)
        shift = state["translation"][b]
        torch.testing.assert_close(out.vertices[b], torch.from_numpy(vertices) + shift)
        torch.testing.assert_close(out.joints[b], torch.from_numpy(placed) + shift)
    for triangle, corners in enumerate(head.faces.tolist()):
        assert torch.equal(out.triangles[1, triangle], out.vertices[1, corners])


def test_nothing_given_is_the_template_and_batches_agree():
    head, state = small_head(), random_state(3)
    torch.testing.assert_close(head().vertices[0], head.template)
    together = head(**state).vertices
    for b in range(3):
        torch.testing.assert_close(head(**{k: v[b : b + 1] for k, v in state.items()}).vertices[0], together[b])
    one = {"shape": state["shape"][:1], "jaw": state["jaw"]}  # one person, three frames
    assert head(**one).vertices.shape == (3, 8, 3)
    fewer = head(shape=state["shape"][:, :1]).vertices
    torch.testing.assert_close(fewer, head(shape=state["shape"] * torch.tensor([1.0, 0.0])).vertices)


def test_gradients_reach_every_argument():
    head = small_head()
    inputs = {name: value.requires_grad_() for name, value in random_state(1).items()}
    assert torch.autograd.gradcheck(
        lambda *values: head(**dict(zip(inputs, values, strict=True))).vertices, tuple(inputs.values())
    )


def test_bad_input():
    head = small_head()
    with pytest.raises(ValueError, match=r"`jaw` must be of shape \(1, 3\), but is \(1, 2\)"):
        head(jaw=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"`expression` must be of shape \(2, 3\), but is \(2, 4\)"):
        head(expression=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"`neck` must be of shape \(3, 3\), but is \(2, 3\)"):
        head(neck=torch.zeros(2, 3), jaw=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="`weights` must be named as in jawOpen, .* but hold .'frown'."):
        head.named_expression(frown=1.0)
    with pytest.raises(ValueError, match="`names` must be among face, .* but hold .'nose'."):
        head.region("nose")
    state = dict(head.named_buffers())
    with pytest.raises(ValueError, match="`faces` must lie in 0..7, but has 0..8"):
        ParametricHead(**state | {"faces": torch.tensor([[0, 1, 8]]), "regions": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"`skinning_weights` must be of shape \(8, 5\)"):
        ParametricHead(**state | {"skinning_weights": torch.zeros(8, 4)})
    with pytest.raises(ValueError, match="`canonical` must be of shape"):
        whole_head(torch.zeros(68, 3))


def test_a_saved_head_is_read_in_another_process(tmp_path):
    head, state = small_head(torch.float32), random_state(dtype=torch.float32)
    head.save(tmp_path / "head.safetensors")
    torch.save(state, tmp_path / "state.pt")
    code = (
        "import sys, torch; from vasa_hf.head.parametric import ParametricHead; folder = sys.argv[1]\n"
        "head = ParametricHead.load(folder + '/head.safetensors')\n"
        "state = torch.load(folder + '/state.pt', weights_only=True)\n"
        "torch.save(head(**state).vertices, folder + '/out.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt", weights_only=True), head(**state).vertices)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="`path` must be a head"):
        ParametricHead.load(tmp_path / "other.safetensors")


# --- the built-in head ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built_in():
    return whole_head()


@pytest.fixture(
    scope="module",
    params=[
        "built-in",
        pytest.param("ict", marks=pytest.mark.skipif(not ICT.is_file(), reason="no head/ict_facekit.npz")),
    ],
)
def real(request, built_in):
    return built_in if request.param == "built-in" else ict_head(ICT, 10)


def landmarks_of(head, **state):
    """The 152 points as a (162, 2) array, irises from the eyeballs' centres."""
    out = head(**state)
    points = torch.zeros(162, 2)
    points[:152] = out.vertices[0, head.landmarks, :2]
    points[152:157], points[157:] = out.joints[0, 4, :2], out.joints[0, 3, :2]
    return points


def test_skin_is_one_surface_with_a_border_at_the_neck_and_behind_the_eyes(built_in):
    skin = built_in.faces[built_in.region("face", "scalp", "neck")]
    cavity = built_in.faces[built_in.region("mouth")]
    used = torch.zeros(len(built_in.template), dtype=torch.bool)
    used[skin] = True
    bag = cavity[used[cavity].any(1)]
    for _ in range(8):  # grow from the lips inwards: the cavity, not the gums or the tongue
        used[bag] = True
        bag = cavity[used[cavity].any(1)]
    faces = torch.cat([skin, bag])
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    one_way = edges.unique(dim=0)
    assert len(one_way) == len(edges), "no edge is run along twice in one direction: sides are consistent"
    back = {tuple(edge) for edge in edges.flip(1).tolist()}
    border = [edge for edge in edges.tolist() if tuple(edge) not in back]
    following, loops = dict(border), []
    while following:
        start, end = following.popitem()
        loop = [start]
        while end != start:
            loop.append(end)
            end = following.pop(end)
        loops.append(built_in.template[loop].mean(0))
    assert len(loops) == 3
    assert sum(abs(float(place[0])) > 2 and float(place[1]) < 0 for place in loops) == 2  # sockets
    assert max(float(place[1]) for place in loops) > 15  # neck


def test_triangles_face_outwards(real):
    a, b, c = real.template[real.faces].unbind(1)
    normal, middle = torch.linalg.cross(b - a, c - a), (a + b + c) / 3
    joints = real().joints[0]
    for region, center in (
        ("left_eye", joints[3]),
        ("right_eye", joints[4]),
        ("scalp", torch.tensor([0.0, -2.0, 9.0])),
    ):
        which = real.region(region)
        away = ((middle - center) * normal).sum(1)[which] > 0
        area = normal.norm(dim=1)[which]
        # ICT's ears fold; its irises are bowls behind the cornea.
        assert (away * area).sum() / area.sum() > (0.99 if len(real.template) < 7000 else 0.7), region


def test_landmarks_are_those_of_the_mean_face(built_in):
    placed = built_in.template[built_in.landmarks]
    expected = mean_face()[:152] * CM
    assert (placed - expected).norm(dim=1).max() < 0.3  # lips are shut, which takes up to 2.5 mm
    skin = built_in.faces[built_in.region("face", "scalp", "neck")].unique()
    assert torch.cdist(placed, built_in.template[skin]).amin(1).max() < 0.7  # a cell next to the face


def test_it_is_left_right_symmetric(built_in):
    skin = built_in.faces[built_in.region("face", "scalp", "neck")].unique()
    points = built_in.template[skin]
    nearest = torch.cdist(points * torch.tensor([-1.0, 1.0, 1.0]), points)
    assert nearest.amin(1).max() < 0.02
    weights = built_in.skinning_weights[skin]
    torch.testing.assert_close(weights[nearest.argmin(1)][:, :3], weights[:, :3], atol=2e-3, rtol=0)


def test_regions(real):
    assert (real.omega_face & real.omega_neck).sum() == 0
    middle = real.template[real.faces].mean(1)
    chin = real.template[real.landmarks[rows(152)[0]]]
    assert middle[real.omega_neck, 1].amax() > chin[1] + 5 and middle[real.region("face"), 2].amax() < chin[2] + 7
    nose, crown = real.template[real.landmarks[rows(4)[0]]], middle[middle[:, 1].argmin()]
    for place, region in ((nose, "face"), (crown, "scalp"), (chin + torch.tensor([0.0, 4.0, 5.0]), "neck")):
        assert REGIONS[int(real.regions[(middle - place).norm(dim=1).argmin()])] == region
    for region in REGIONS:
        assert real.region(region).sum() > 20, region
    assert middle[:, 2].amax() > 14  # there is a back of the head


def test_the_jaw_opens_the_mouth_and_leaves_the_rest(real):
    expression, jaw = real.named_expression(jawOpen=1.0)
    rest, wide = landmarks_of(real), landmarks_of(real, expression=expression, jaw=jaw)
    assert mouth_openness(rest)[0] < 0.03 and 0.2 < mouth_openness(wide)[0] < 0.5
    still = [row for group in ("left_eye", "right_eye", "left_brow", "right_brow") for row in GROUPS[group]]
    assert (wide - rest)[still].abs().max() < 0.05
    moved = (real(jaw=jaw).vertices[0] - real.template).norm(dim=1)
    teeth = real.faces[real.region("teeth")].unique()
    assert moved[teeth].amax() > 1.5 and (moved[teeth] < 0.1).any()  # the lower ones and the upper ones
    crown = real.template[:, 1] < float(rest[rows(10)[0], 1])
    assert moved[crown].amax() < 0.01
    assert mouth_openness(landmarks_of(real, jaw=torch.tensor([[0.3, 0.0, 0.0]])))[0] > 0.15  # the joint alone, too


def test_eyes_turn_about_their_centres(real):
    turn = torch.tensor([[0.1, -0.4, 0.0, 0.1, -0.4, 0.0]])
    out = real(eyes=turn).vertices[0]
    for joint, name in ((3, "left_eye"), (4, "right_eye")):
        ball = real.faces[real.region(name)].unique()
        center = real().joints[0, joint]
        rotation = rotation_from_vector(turn[0, :3])
        torch.testing.assert_close(out[ball], (real.template[ball] - center) @ rotation.T + center, atol=1e-4, rtol=0)
        assert (rotation @ torch.tensor([0.0, 0.0, -1.0]))[0] > 0.3  # -y: to the image's right
    others = real.faces[~real.region("left_eye", "right_eye")].unique()
    assert (out - real.template)[others].abs().max() < 1e-5


def test_the_neck_bends_between_head_and_shoulders(real):
    out = real(neck=torch.tensor([[0.0, 0.5, 0.0]]))
    nose, rotation = real.landmarks[rows(4)[0]], rotation_from_vector(torch.tensor([0.0, 0.5, 0.0]))
    joint = out.joints[0, JOINTS.index("neck")]
    torch.testing.assert_close(
        out.vertices[0, nose], (real.template[nose] - joint) @ rotation.T + joint, atol=1e-3, rtol=0
    )
    low = real.template[:, 1] > real.template[:, 1].amax() - 0.5
    assert (out.vertices[0] - real.template)[low].abs().max() < 0.02
    # No jumps: neighbours stay near one another.
    skin = real.faces[real.region("face", "scalp", "neck")]
    before, after = (v[skin[:, 0]] - v[skin[:, 1]] for v in (real.template, out.vertices[0]))
    assert (after.norm(dim=1) - before.norm(dim=1)).max() < 0.5


def test_named_expressions_do_what_they_say(real):
    rest = landmarks_of(real)

    def measured(**weights):
        expression, jaw = real.named_expression(**weights)
        points = landmarks_of(real, expression=expression, jaw=jaw)
        return mouth_openness(points), eye_openness(points), points

    openness = eye_openness(rest)
    blink = measured(eyeBlink_L=1.0)[1]  # the person's left eye is the image's right one
    shut = 0.1 if len(real.template) < 7000 else 0.4  # of its gap; the lid points of ICT are not quite on the margins
    assert openness.min() > 0.25 and blink[1] < shut * openness[1] and blink[0] > 0.9 * openness[0]
    assert measured(mouthPucker=1.0)[0][1] < mouth_openness(rest)[1] - 0.04
    assert measured(mouthSmile_L=1.0, mouthSmile_R=1.0)[0][1] > mouth_openness(rest)[1] + 0.03
    brow = list(GROUPS["left_brow"])
    assert (measured(browOuterUp_R=1.0)[2] - rest)[brow, 1].amin() < -0.2
    assert abs(measured(jawOpen=0.5, mouthClose=0.5)[0][0]) < 0.1
    left = measured(jawLeft=1.0)[2] - rest
    assert left[rows(152)[0], 0] > 0.2


def test_it_can_be_fitted_to_landmarks(real):
    """The linear form of the head finds pose and shape of a face that it can make."""
    mesh = real.as_mesh(8)
    assert mesh.expression_names == NAMED and len(mesh.identity) == min(8, len(real.shape_basis))
    torch.testing.assert_close(mesh.eye_centers @ mesh.vertices, real().joints[0, [4, 3]])
    shape = torch.zeros(1, len(mesh.identity))
    shape[0, :2] = torch.tensor([1.0, -0.8])
    rotation = rotation_from_vector(torch.tensor([0.05, -0.3, 0.0]))
    points = torch.zeros(162, 2)
    points[:152] = 0.03 * (real(shape=shape).vertices[0, real.landmarks] @ rotation.T)[:, :2] + 0.5
    fitted = fit_head(mesh, points, torch.eye(3))
    assert fitted.error < 0.1
    torch.testing.assert_close(fitted.rotation, rotation, atol=0.05, rtol=0)


@pytest.mark.skipif(not ICT.is_file(), reason="no head/ict_facekit.npz")
def test_the_jaw_of_the_file_is_kept():
    """jawOpen by skinning and shape is the file's own shape; more of it is in the turn than in the shape."""
    head = ict_head(ICT, 1)
    mesh = head.as_mesh()
    expression, jaw = head.named_expression(jawOpen=1.0)
    from vasa_hf.head.ict import ict_mesh

    linear = ict_mesh(ICT, 1)
    offset = linear.expression[linear.index("jawOpen")][linear.landmarks]
    torch.testing.assert_close(mesh.expression[mesh.index("jawOpen")][mesh.landmarks], offset, atol=0.02, rtol=0)
    shape_alone = head(expression=expression).vertices[0, head.landmarks] - head.template[head.landmarks]
    assert shape_alone.norm(dim=1).mean() < 0.35 * offset.norm(dim=1).mean()
