import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.head.test_parametric import small_head
from tests.testing_utils.fresh_process import reload_model, run_in_fresh_process
from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.gaussians.densify import DensityConfig, DensityPlan, apply_density
from vasa_hf.gaussians.render import render
from vasa_hf.geometry.cameras import Cameras
from vasa_hf.geometry.landmarks import GROUPS
from vasa_hf.geometry.quaternions import matrix_from_quaternion
from vasa_hf.geometry.rotations import matrix_from_euler
from vasa_hf.head.driving import place_canonical, place_from_picture, rotation_vector
from vasa_hf.head.mean_face import mean_face
from vasa_hf.head.parametric import NAMED
from vasa_hf.head.skinning import rotation_from_vector
from vasa_hf.models.gaussian_avatar_vasa3d import SMALL_CONFIG, Vasa3DGaussianAvatar, encode_position

FIELDS = ("means", "quats", "scales", "opacities", "colors")
REST = [0.0, 0.0, 0.0, 0.5, 0.5, 0.25]


def tiny_head():
    """Eight vertices, six triangles of six regions, none of them degenerate."""
    torch.manual_seed(0)
    head = small_head(torch.float32)
    head.faces.copy_(torch.stack([torch.randperm(8)[:3] for _ in range(6)]))
    head.landmarks.copy_(torch.arange(152) % 8)
    return head


def flat(gaussians) -> torch.Tensor:
    """All numbers of each Gaussian [B, N, 14]."""
    return torch.cat([v[..., None] if v.ndim == 2 else v for v in (getattr(gaussians, f) for f in FIELDS)], dim=-1)


class TestVasa3DGaussianAvatar(ModelTesterMixin):
    model_class = Vasa3DGaussianAvatar

    def make_config(self):
        sizes = {"num_vertices": 8, "num_triangles": 6, "num_shapes": 2, "num_expressions": 3, "num_pose_offsets": 36}
        return {"num_gaussians": 30, "head_sizes": sizes, "motion_dim": 11, "motion_space": "tiny", "hidden_size": 16}

    def make_model(self):
        torch.manual_seed(0)
        config = {name: value for name, value in self.make_config().items() if name != "head_sizes"}
        model = Vasa3DGaussianAvatar.from_head(tiny_head(), **config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model

    def make_inputs(self, model):
        torch.manual_seed(1)
        return {"motion": torch.tensor([*REST, 0, 0, 0, 0, 0]) + 0.3 * torch.randn(3, 11)}

    def bad_inputs(self, model):
        return [("motion", {"motion": torch.zeros(*shape)}) for shape in ((2, 34), (11,), (1, 2, 11))]

    def run(self, model, inputs):
        return flat(model(**inputs).gaussians)

    def test_save_and_load_in_a_fresh_process(self, tmp_path):
        model = self.make_model()
        model.save_pretrained(tmp_path / "avatar")
        save_file(self.make_inputs(model), tmp_path / "in.safetensors")
        files = [str(tmp_path / name) for name in ("avatar", "in.safetensors", "out.safetensors")]
        run_in_fresh_process(reload_model, "vasa_hf", "Vasa3DGaussianAvatar", *files, "__call__", FIELDS)
        expected, result = model(**self.make_inputs(model)).gaussians, load_file(files[2])
        for name in FIELDS:
            torch.testing.assert_close(result[name], getattr(expected, name).detach(), rtol=1e-4, atol=1e-5)

    def test_gradient_reaches_everything_through_the_base_too(self):
        """Losses are applied to G' as well: it must reach all but D^e and D^p."""
        model = self.make_model()
        result = flat(model(**self.make_inputs(model), deform=False).gaussians)
        (result * torch.randn_like(result)).sum().backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert {name for name, _ in model.named_parameters()} - reached == {
            name for name, _ in model.named_parameters() if name.startswith("deform_")
        }

    def test_batch_equals_single_and_rest_state_changes_nothing(self):
        model = self.make_model()
        motion = self.make_inputs(model)["motion"]
        both = model(motion, return_base=True)
        rest = model.rest_state()
        for i in range(len(motion)):
            single = model(motion[i : i + 1], return_base=True, rest=rest)
            for name in ("gaussians", "base"):
                torch.testing.assert_close(flat(single[name])[0], flat(both[name])[i], rtol=1e-4, atol=1e-5)

    def test_eq_3_and_4_against_a_loop(self):
        """Each Gaussian alone: D's input joined, three layers, deltas on the head at rest, carried by the triangle."""
        model = self.make_model()
        motion = self.make_inputs(model)["motion"][:1]
        out = model(motion, return_base=True)
        posed = model.pose_head(out.expression, out.pose).vertices[0]
        rest = model.head(shape=model.shape[None]).vertices[0]

        def frame(vertices, face):
            a, b, c = vertices[model.head.faces[face]]
            x = (b - a) / (b - a).norm()
            y = torch.linalg.cross(x, c - a)
            y = y / y.norm()
            z = torch.linalg.cross(x, y)
            return (a + b + c) / 3, torch.stack([x, y, z], 1), ((b - a).norm() + ((c - a) @ z).abs()) / 2

        normal = model.normalize(motion)
        seen = set()
        for i, face in enumerate(model.triangles.tolist()):
            origin, rotation, size = frame(rest, face)
            mean = origin + size * rotation @ model.means[i]
            turn = rotation @ matrix_from_quaternion(model.quats[i])
            log_scale, logit, color = model.scales[i] + size.log(), model.opacities[i], model.colors[i]
            region = 0 if model.head.omega_face[face] else 1 if model.head.omega_neck[face] else None
            seen.add(region)
            if region is not None:
                field = (model.deform_face, model.deform_neck)[region]
                box = model.region_boxes[region]
                parts = (normal[0, 6:], out.expression[0]) if region == 0 else (normal[0, :6], out.pose[0])
                # The quaternion's sign is free: what the model's own conversion gives is as good as its opposite.
                quat = model_quaternion(rotation, model.quats[i])
                place = encode_position((mean - box[:3]) / box[3])
                g = torch.cat([place, quat, log_scale, logit.sigmoid()[None], color])
                weight = torch.cat([field.gaussian_in.weight, field.code_in.weight], 1)
                hidden = (weight @ torch.cat([g, *parts]) + field.code_in.bias).relu()
                delta = field.out(field.hidden(hidden).relu())
                mean, turn = mean + delta[:3], matrix_from_quaternion(quat + delta[3:7])
                log_scale, logit, color = log_scale + delta[7:10], logit + delta[10], color + delta[11:]
            new_origin, new_rotation, new_size = frame(posed, face)
            carried = new_rotation @ rotation.T
            expected = new_origin + new_size / size * carried @ (mean - origin)
            close = {"rtol": 1e-3, "atol": 1e-4}
            torch.testing.assert_close(out.gaussians.means[0, i], expected, **close)
            got = matrix_from_quaternion(out.gaussians.quats[0, i])
            torch.testing.assert_close(got, carried @ turn, **close)
            torch.testing.assert_close(out.gaussians.scales[0, i], log_scale.exp() * new_size / size, **close)
            torch.testing.assert_close(out.gaussians.opacities[0, i], logit.sigmoid(), **close)
            torch.testing.assert_close(out.gaussians.colors[0, i], color, **close)
        assert seen == {0, 1, None}

    def test_density_control_changes_the_number(self, tmp_path):
        model = self.make_model()
        optimizer = torch.optim.Adam(model.parameters())
        flat(model(**self.make_inputs(model)).gaussians).sum().backward()
        optimizer.step()
        plan = DensityPlan(torch.arange(5, 30), torch.tensor([7, 8]), torch.tensor([0, 1, 2]))
        new, triangles = apply_density(plan, model.gaussian_parameters, optimizer, DensityConfig(), model.triangles)
        model.set_gaussians(new, triangles)
        assert len(model(**self.make_inputs(model)).gaussians) == plan.total == 33
        model.save_pretrained(tmp_path)
        again = Vasa3DGaussianAvatar.from_pretrained(tmp_path)
        torch.testing.assert_close(self.run(again, self.make_inputs(model)), self.run(model, self.make_inputs(model)))
        with pytest.raises(ValueError, match="`parameters`"):
            model.set_gaussians(new, triangles[:-1])

    def test_half_precision_files_load_as_float32(self, tmp_path):
        model = self.make_model()
        expected = self.run(model, self.make_inputs(model))
        model.half().save_pretrained(tmp_path)
        again = Vasa3DGaussianAvatar.from_pretrained(tmp_path, torch_dtype=torch.float32)
        result = self.run(again, self.make_inputs(model))
        assert result.dtype == torch.float32
        # Half has 11 bits; the tiny random head has thin triangles, which magnify what they carry.
        assert (result - expected).abs().mean() < 0.01 * expected.std()

    def test_another_motion_space_is_refused(self):
        model = self.make_model()
        model.check_motion_space("tiny")
        with pytest.raises(ValueError, match="`motion_space`.*tiny.*vasa-small"):
            model.check_motion_space("vasa-small")

    def test_motion_must_be_wider_than_the_pose(self):
        with pytest.raises(ValueError, match="`motion_dim`"):
            Vasa3DGaussianAvatar(**{**self.make_config(), "motion_dim": 6})

    def test_every_triangle_needs_a_gaussian(self):
        with pytest.raises(ValueError, match="`num_gaussians`"):
            Vasa3DGaussianAvatar.from_head(tiny_head(), num_gaussians=5, motion_dim=11)


def model_quaternion(rotation, local):
    """Quaternion on the head at rest, as the model forms it."""
    from vasa_hf.geometry.quaternions import quaternion_from_matrix, quaternion_multiply

    return quaternion_multiply(quaternion_from_matrix(rotation), local / local.norm())


def test_encoding_against_its_formula():
    x = torch.tensor([[0.3, -0.7, 0.1]], dtype=torch.float64)
    expected = [f(2**k * torch.pi * v) for f in (torch.sin, torch.cos) for k in range(4) for v in x[0]]
    torch.testing.assert_close(encode_position(x)[0], torch.stack(expected))


def test_paper_size():
    with torch.device("meta"):
        model = Vasa3DGaussianAvatar(num_gaussians=200_000)
    # in -> 256 -> 256 -> out; z_dyn 512, z_pose 6; FLAME's 100 expressions, eyes 6, jaw 3; pose 9; g is 35 -> 14.
    count = lambda i, o: (i + 1) * 256 + 257 * 256 + 257 * o  # noqa: E731
    mlps = count(512, 109) + count(6, 9) + count(35 + 512 + 109, 14) + count(35 + 6 + 9, 14)
    assert sum(p.numel() for p in model.parameters()) == 200_000 * 14 + 300 + mlps
    assert model.config.hidden_size == 256


# --- on the built-in head -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def avatar():
    torch.manual_seed(0)
    config = {**SMALL_CONFIG, "num_gaussians": 13_000, "hidden_size": 64}
    return Vasa3DGaussianAvatar.from_head(motion_space="vasa-small", **config).eval()


def motion(pose=REST, dim=34) -> torch.Tensor:
    return torch.cat([torch.tensor(pose), torch.zeros(dim - 6)])[None]


def test_a_new_avatar_deforms_nothing(avatar):
    with torch.no_grad():
        out = avatar(motion([0.3, 0.1, -0.2, 0.45, 0.55, 0.3]), return_base=True)
    # Exactly the same numbers: the last layers of D^e and D^p are zero.
    assert torch.equal(flat(out.gaussians), flat(out.base))


def test_regions_follow_the_triangles(avatar):
    (face, *_), (neck, *_) = avatar.rest_state().regions
    assert set(avatar.triangles[face].tolist()) == set(avatar.head.omega_face.nonzero()[:, 0].tolist())
    assert set(avatar.triangles[neck].tolist()) == set(avatar.head.omega_neck.nonzero()[:, 0].tolist())
    assert not set(face.tolist()) & set(neck.tolist())
    assert set(avatar.triangles.tolist()) == set(range(len(avatar.head.faces)))


def test_global_pose_moves_all_gaussians_rigidly(avatar):
    zero = torch.zeros(1, avatar.head.sizes["num_expressions"] + 9)
    turn = torch.tensor([[0.2, -0.5, 0.1]])
    pose = torch.cat([torch.zeros(1, 3), turn, torch.tensor([[0.3, -0.2, 0.9]])], dim=1)
    with torch.no_grad():
        before, after = (avatar.base_deformation(zero, p) for p in (torch.zeros(1, 9), pose))
        rotation = rotation_from_vector(turn)[0]
        moved = before.means[0] @ rotation.T
        shift = (after.means[0] - moved).mean(0)
    torch.testing.assert_close(after.means[0], moved + shift, rtol=0, atol=2e-3)  # of 20 cm, in single precision
    torch.testing.assert_close(after.scales, before.scales, rtol=1e-3, atol=1e-4)
    axes = matrix_from_quaternion(after.quats[0]) @ matrix_from_quaternion(before.quats[0]).mT
    assert (axes - rotation).abs().mean() < 1e-4


def test_jaw_and_eyes_move_their_gaussians_alone(avatar):
    count = avatar.head.sizes["num_expressions"]
    states = torch.zeros(3, count + 9)
    states[1, -3] = avatar.head.named[NAMED.index("jawOpen"), -3]  # opens
    states[2, count : count + 3] = torch.tensor([0.0, 0.3, 0.0])  # the person's left eye
    with torch.no_grad():
        means = avatar.base_deformation(states, torch.zeros(3, 9)).means
    opened, looked = (means[1] - means[0]), (means[2] - means[0])
    of = lambda *names: avatar.head.region(*names)[avatar.triangles]  # noqa: E731
    assert opened[of("face"), 1].amax() > 1.0
    assert opened[of("scalp")].norm(dim=-1).amax() < 0.5
    assert looked[of("left_eye")].norm(dim=-1).amax() > 0.2
    assert looked[~of("left_eye")].abs().amax() < 1e-5


def project(avatar, out):
    """Landmarks as the portrait's camera sees them, fractions of the crop."""
    points = avatar.pose_head(out.expression, out.pose).vertices[:, avatar.head.landmarks]
    cameras = Cameras(*(v.expand(len(points), *v.shape[1:]) for v in vars(avatar.portrait_camera).values()))
    return cameras.project(points, (1, 1))[0]


def test_head_appears_where_the_crop_says(avatar):
    torch.manual_seed(3)
    pose = torch.tensor(REST) + torch.randn(20, 6) * torch.tensor([0.3, 0.2, 0.2, 0.06, 0.06, 0.03])
    motions = torch.cat([pose, torch.zeros(20, 28)], dim=1)
    with torch.no_grad():
        seen = project(avatar, avatar(motions, deform=False))
    turned = mean_face()[:152] @ matrix_from_euler(*pose[:, :3].unbind(-1)).mT
    wanted = pose[:, None, 5:] * turned[..., :2] + pose[:, None, 3:5]
    # The eyes' middle is at the canonical origin and so exact but for depth; the rest differs by perspective: the
    # jaw's edge, 5 cm behind the eyes and 1 m away, by 5 % of its distance from the middle.
    assert (seen - wanted).norm(dim=-1).mean() < 0.01
    assert (seen - wanted).norm(dim=-1).amax() < 0.06


@pytest.mark.parametrize("pose_prior", [True, False])
def test_fitted_motion_moves_landmarks_as_requested(pose_prior):
    """Codes that mean: the mouth opens, the eyes look to the image's right, a brow goes up."""
    torch.manual_seed(0)
    avatar = Vasa3DGaussianAvatar.from_head(num_gaussians=12_000, motion_dim=9, hidden_size=64, pose_prior=pose_prior)
    head, unit_cm = avatar.head, float(avatar.canonical_unit_cm)
    displacements = torch.zeros(3, 162, 2)
    for row, names in ((0, {"jawOpen": 0.3}), (2, {"browInnerUp_R": 0.8, "browOuterUp_R": 0.8})):
        expression, jaw = head.named_expression(**names)
        moved = head(expression=expression, jaw=jaw).vertices[0] - head.template
        displacements[row, :152] = moved[head.landmarks, :2] / unit_cm
    displacements[1, [GROUPS[f"{side}_iris"][0] for side in ("left", "right")], 0] = 0.05
    motions = torch.tensor([*REST, 0, 0, 0]) + torch.randn(200, 9) * torch.tensor([0.1] * 3 + [0.03] * 3 + [1.0] * 3)
    motions[:, 5] = motions[:, 5].clamp_min(0.2)
    errors = avatar.fit_motion(motions, displacements, generator=torch.Generator().manual_seed(0))
    assert errors["expression"] < 1e-5
    if pose_prior:
        assert errors["pose_rad"] == errors["translation_cm"] == 0
    else:  # far less than 1 rad and 20 cm, the range of the poses
        assert errors["pose_rad"] < 0.05 and errors["translation_cm"] < 4
    states = torch.tensor([[*REST, 0, 0, 0], [*REST, 1, 0, 0], [*REST, 0, 1, 0], [*REST, 0, 0, 1]])
    with torch.no_grad():
        out = avatar(states, deform=False)
        moved = project(avatar, out)[1:] - project(avatar, out)[:1]
    for row in (0, 2):  # within a sixth: perspective, the ridge, and that the jaw turns rather than slides
        wanted = REST[5] * displacements[row, :152]
        assert (moved[row] - wanted).norm() < 0.16 * wanted.norm()
    eyes = out.expression[2, -9:-3] - out.expression[0, -9:-3]
    yaw = -0.05 * unit_cm / float(head.eye_radius_cm)
    torch.testing.assert_close(eyes, torch.tensor([0, yaw, 0, 0, yaw, 0]), rtol=1e-3, atol=1e-4)


def test_fit_motion_checks_its_arguments(avatar):
    good = {"motions": torch.zeros(4, 34), "displacements": torch.zeros(28, 162, 2)}
    bad = {
        "motions": torch.zeros(4, 30),
        "displacements": torch.zeros(27, 162, 2),
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"`{name}`"):
            avatar.fit_motion(**{**good, name: value})
    narrow = Vasa3DGaussianAvatar.from_head(num_gaussians=12_000, motion_dim=34, hidden_size=50)
    with pytest.raises(ValueError, match="`hidden_size`"):
        narrow.fit_motion(**{**good, "motions": torch.tensor([*REST, *[0.0] * 28]).repeat(4, 1)})


def test_own_motion_is_the_mean_until_somebody_says_it(avatar):
    copy = Vasa3DGaussianAvatar.from_config(avatar.config)
    copy.load_state_dict(avatar.state_dict())
    copy.own_motion.zero_()
    motions = torch.tensor([*REST, *[0.0] * 28]) + 0.01 * torch.randn(8, 34)
    copy.fit_motion(motions, torch.zeros(28, 162, 2))
    torch.testing.assert_close(copy.own_motion, motions.mean(0))
    said = motions[3].clone()
    copy.own_motion.copy_(said)
    copy.fit_motion(motions, torch.zeros(28, 162, 2))
    assert torch.equal(copy.own_motion, said)


def test_place_from_image_puts_the_head_where_the_fit_has_it():
    avatar = Vasa3DGaussianAvatar.from_head(**{**SMALL_CONFIG, "num_gaussians": 12_000})
    pose = torch.tensor([0.3, -0.1, 0.1, 0.45, 0.55, 0.26])
    rotation = matrix_from_euler(*torch.tensor([0.35, -0.05, 0.08]))  # of a fit that sees things a little otherwise
    translation, scale = torch.tensor([0.46, 0.53, 0.0]), torch.tensor(0.031)
    before = place_canonical(avatar.head, mean_face())
    avatar.set_place(place_from_picture(before, pose, rotation, translation, scale))
    with torch.no_grad():
        expression, found = avatar.head_parameters(torch.cat([pose, torch.zeros(28)])[None])
        vertices = avatar.pose_head(expression * 0, found).vertices[0, avatar.head.landmarks]
    local = avatar.head.template[avatar.head.landmarks]
    wanted = scale * local @ rotation.mT + translation
    # The same up to perspective: turned alike, as large, and in the same place.
    turned = (local - local.mean(0)) @ rotation.mT
    torch.testing.assert_close(vertices - vertices.mean(0), turned, rtol=0, atol=1e-3)
    seen = avatar.portrait_camera.project(vertices, (1, 1))[0][0]
    assert (seen - wanted[:, :2]).norm(dim=-1).mean() < 0.006


def test_rotation_vector_inverts_rodrigues():
    vectors = torch.randn(50, 3, dtype=torch.float64)
    vectors = torch.cat([vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1.0) * 3.0, torch.zeros(1, 3)])
    torch.testing.assert_close(rotation_vector(rotation_from_vector(vectors)), vectors)


def test_rendered_head_is_in_the_image(avatar):
    with torch.no_grad():
        out = avatar(torch.cat([motion(), motion([0, 0, 0, 0.7, 0.5, 0.25])]), deform=False)
        pictures = render(out.gaussians, avatar.portrait_camera, 64)
    alpha = pictures.alpha[:, 0]
    columns = (alpha.sum(1) * (torch.arange(64) + 0.5)).sum(1) / alpha.sum((1, 2)) / 64
    torch.testing.assert_close(columns, torch.tensor([0.5, 0.7]), rtol=0, atol=0.02)
    assert 0.15 < alpha[0].mean() < 0.6
    assert alpha[0, 32, 32] > 0.95
