import struct

import pytest
import torch

from vasa_hf.gaussians.export import load_ply, load_splat, save_ply, save_splat
from vasa_hf.gaussians.render import render
from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.cameras import orbit_cameras


def random_scene(count: int = 60, coefficients: int | None = 16) -> Gaussians:
    colors = torch.rand(count, 3) if coefficients is None else 0.4 * torch.randn(count, coefficients, 3)
    return Gaussians(
        torch.randn(count, 3) * 0.2, torch.randn(count, 4), 0.02 + 0.1 * torch.rand(count, 3), torch.rand(count), colors
    )


def picture(gaussians: Gaussians) -> torch.Tensor:
    return render(gaussians, orbit_cameras(torch.tensor([0.3, 2.0]), 0.2, 1.5), 48, (1.0, 1.0, 1.0)).color


@pytest.mark.parametrize("coefficients", [None, 1, 4, 9, 16])
def test_ply_comes_back_the_same(tmp_path, coefficients):
    scene = random_scene(coefficients=coefficients)
    save_ply(scene, tmp_path / "a.ply")
    loaded = load_ply(tmp_path / "a.ply")
    assert loaded.colors.shape == (60, coefficients or 1, 3)
    assert torch.equal(loaded.means, scene.means) and torch.equal(loaded.quats, scene.quats)
    assert torch.allclose(loaded.scales, scene.scales) and torch.allclose(loaded.opacities, scene.opacities, atol=1e-6)
    assert torch.allclose(picture(loaded), picture(scene), atol=5e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_ply_has_the_layout_of_3dgs(tmp_path):
    """Read by the format's definition, not by our reader."""
    scene = random_scene(3)
    save_ply(scene, tmp_path / "a.ply")
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 3"]
    names = [line.removeprefix("property float ") for line in lines[3:]]
    assert names == [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{index}" for index in range(45)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]
    row = dict(zip(names, struct.unpack("<62f", body[62 * 4 : 2 * 62 * 4]), strict=True))
    assert row["y"] == scene.means[1, 1] and row["rot_0"] == scene.quats[1, 0] and row["nx"] == 0
    assert row["f_dc_2"] == scene.colors[1, 0, 2]
    # f_rest: 15 of red, then 15 of green, then 15 of blue.
    assert row["f_rest_0"] == scene.colors[1, 1, 0] and row["f_rest_1"] == scene.colors[1, 2, 0]
    assert row["f_rest_15"] == scene.colors[1, 1, 1] and row["f_rest_44"] == scene.colors[1, 15, 2]
    assert row["scale_2"] == pytest.approx(scene.scales[1, 2].log().item(), rel=1e-6)
    assert row["opacity"] == pytest.approx(torch.logit(scene.opacities[1]).item(), rel=1e-4)
    assert len(body) == 3 * 62 * 4


def test_ply_of_other_programs_is_read(tmp_path):
    """Other order and types, comments, further properties, and a second element."""
    names = ["opacity", "rot_0", "rot_1", "rot_2", "rot_3", "x", "y", "z", "scale_0", "scale_1", "scale_2"]
    names += ["f_dc_0", "f_dc_1", "f_dc_2"]
    header = (
        "ply\r\nformat binary_little_endian 1.0\ncomment made elsewhere\nelement vertex 1\nproperty uchar quality\n"
    )
    header += "".join(f"property double {name}\n" for name in names)
    header += "element face 0\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "b.ply").write_bytes(header.encode() + b"\x07" + struct.pack("<14d", *range(14)))
    loaded = load_ply(tmp_path / "b.ply")
    assert loaded.means.tolist() == [[5, 6, 7]] and loaded.quats.tolist() == [[1, 2, 3, 4]]
    assert loaded.opacities.item() == 0.5 and loaded.colors.tolist() == [[[11, 12, 13]]]


def test_extreme_opacities_and_scales_survive(tmp_path):
    scene = random_scene(3, None)
    scene.opacities[:] = torch.tensor([0.0, 1.0, 0.5])
    scene.scales[0] = 0.0
    save_ply(scene, tmp_path / "a.ply")
    loaded = load_ply(tmp_path / "a.ply")
    assert torch.allclose(loaded.opacities, scene.opacities, atol=1e-5) and loaded.scales[0].max() < 1e-11
    save_ply(random_scene(0), tmp_path / "empty.ply")
    assert len(load_ply(tmp_path / "empty.ply")) == 0


@pytest.mark.parametrize("coefficients", [None, 1])
def test_splat_looks_the_same(tmp_path, coefficients):
    scene = random_scene(coefficients=coefficients)
    save_splat(scene, tmp_path / "a.splat")
    assert (tmp_path / "a.splat").stat().st_size == 60 * 32
    loaded = load_splat(tmp_path / "a.splat")
    weight = loaded.scales.prod(dim=-1) * loaded.opacities
    assert (weight[1:] <= weight[:-1] * 1.05).all()  # large and opaque ones first
    difference = (picture(loaded) - picture(scene)).abs()
    assert difference.mean() < 3e-3 and difference.max() < 0.05  # 8 bits of colour, opacity and rotation


def test_splat_has_its_32_bytes(tmp_path):
    scene = Gaussians(
        torch.tensor([[1.0, 2.0, 3.0]]),
        torch.tensor([[0.0, 2.0, 0.0, 0.0]]),
        torch.tensor([[0.1, 0.2, 0.3]]),
        torch.tensor([0.2]),
        torch.tensor([[1.0, 0.0, 0.4]]),
    )
    save_splat(scene, tmp_path / "a.splat")
    values = struct.unpack("<6f8B", (tmp_path / "a.splat").read_bytes())
    assert values[:6] == pytest.approx([1, 2, 3, 0.1, 0.2, 0.3])
    assert values[6:] == (255, 0, 102, 51, 128, 255, 128, 128)


def test_files_that_are_not_gaussians_are_refused(tmp_path):
    path = tmp_path / "c.ply"
    save_ply(random_scene(4), path)
    whole = path.read_bytes()
    mesh = b"ply\nformat binary_little_endian 1.0\nelement vertex 1\n" + b"".join(
        b"property float %s\n" % name for name in (b"x", b"y", b"z")
    )
    bad = {
        "does not begin": b"\x89PNG\r\n\x1a\n",
        "has no end": whole[:100],
        "is cut off": whole[:-1],
        "binary_little_endian": whole.replace(b"binary_little_endian", b"ascii"),
        "first element": whole.replace(b"element vertex 4", b"element face 4"),
        "no f_dc_0": mesh + b"end_header\n" + bytes(12),
        "a line of its header": whole.replace(b"property float nx", b"property list uchar int nx"),
        "44 properties f_rest": whole.replace(b"f_rest_44", b"other"),
        "same name": whole.replace(b"float ny", b"float nx"),
        "finite": whole[:-4] + struct.pack("<f", float("nan")),
        "cut off": whole.replace(b"element vertex 4", b"element vertex 999999999999"),
    }
    for reason, data in bad.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"`path` .*{reason}"):
            load_ply(path)
    for data in (bytes(33), b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="`path` must be a .splat"):
            load_splat(path)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    scene = random_scene(4)
    for save in (save_ply, save_splat):
        with pytest.raises(ValueError, match="one set"):
            save(scene.map(lambda value: value[None]), tmp_path / "a")
        broken = random_scene(4)
        broken.means[2, 0] = float("nan")
        with pytest.raises(ValueError, match="but means has NaN"):
            save(broken, tmp_path / "a")
    assert not list(tmp_path.iterdir())
