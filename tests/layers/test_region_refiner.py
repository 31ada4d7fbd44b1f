import pytest
import torch

from vasa_hf.layers.region_refiner import REGIONS, RegionRefiner, add_region, cut_region, region_transform

POSE = torch.tensor([[0.0, 0.0, 0.0, 0.5, 0.4, 0.3], [0.3, -0.2, 0.25, 0.45, 0.42, 0.34]])


def positions(size=256):
    """Images whose two channels are the x and y of each pixel, fractions of the side."""
    axis = (torch.arange(size) + 0.5) / size
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy")).expand(2, -1, -1, -1)


def test_a_frontal_crop_lies_where_the_face_has_the_region():
    region = REGIONS["mouth"]
    crop = cut_region(positions(), region_transform(POSE, region), region.size)[0]
    center = torch.tensor([0.5, 0.4 + 0.3 * region.center[1]])
    torch.testing.assert_close(crop.mean((1, 2)), center, atol=1e-4, rtol=0)
    width = (crop[0, 0, -1] - crop[0, 0, 0]) * region.size[1] / (region.size[1] - 1)
    torch.testing.assert_close(width, torch.tensor(2 * 0.3 * region.half_size[0]), atol=1e-3, rtol=0)


def test_crops_follow_a_turned_head():
    from vasa_hf.geometry.rotations import matrix_from_euler

    region = REGIONS["eyes"]
    crops = cut_region(positions(), region_transform(POSE, region), region.size)
    assert crops.shape == (4, 2, *region.size)
    rotation = matrix_from_euler(*POSE[1, :3])
    for crop, side in zip(crops[2:], (1, -1), strict=True):
        point = torch.tensor([side * region.center[0], *region.center[1:]]) @ rotation.T
        torch.testing.assert_close(crop.mean((1, 2)), POSE[1, 3:5] + 0.34 * point[:2], atol=1e-3, rtol=0)


def test_the_other_eye_is_seen_mirrored():
    image = positions()[:1]
    symmetric = (image[:, :1] - 0.5).abs() + image[:, 1:]  # the same on both sides
    left, right = cut_region(symmetric, region_transform(POSE[:1], REGIONS["eyes"]), REGIONS["eyes"].size)
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
    assert left[0, :, -1].mean() > left[0, :, 0].mean()  # outwards to the right in both


@pytest.mark.parametrize("name", list(REGIONS))
@pytest.mark.parametrize("size", [128, 256])
def test_what_is_added_lands_where_it_was_cut(name, size):
    region = REGIONS[name]
    transform = region_transform(POSE, region)
    smooth = 0.5 + 0.5 * torch.sin(7 * positions(size)[:, :1] + 5 * positions(size)[:, 1:])
    crops = cut_region(smooth, transform, region.size)
    image = torch.zeros(2, 1, size, size)
    out = add_region(image, crops, transform)
    assert not image.any()  # a new image
    inside = add_region(image, torch.ones_like(crops), transform) > 0.999
    share = inside.float().mean().item()
    corners = torch.linalg.det(transform[:, :, :2]).abs().sum().item() / len(POSE)
    assert share == pytest.approx(corners, rel=0.15)  # the area of the region, less its blended border
    torch.testing.assert_close(out[inside], smooth[inside], atol=0.02, rtol=0)
    outside = add_region(image, torch.ones_like(crops), transform) == 0
    assert not out[outside].any()


def test_a_region_outside_of_the_image_adds_nothing():
    pose = POSE[:1].clone()
    pose[:, 4] = 3.0
    transform = region_transform(pose, REGIONS["mouth"])
    assert not add_region(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, *REGIONS["mouth"].size), transform).any()


@pytest.mark.parametrize("name", list(REGIONS))
def test_changes_end_before_the_crop_and_gradients_reach_everything(name):
    torch.manual_seed(0)
    region = REGIONS[name]
    refiner = RegionRefiner(region, 10, [4, 8, 8])
    crop, code = torch.rand(2 * region.count, 3, *region.size), torch.randn(2, 10)
    change = refiner(crop, refiner.encode_source(crop.flip(0)), code)
    assert change.shape == crop.shape
    border = torch.cat([change[..., 0, :], change[..., -1, :]], -1)
    assert border.abs().max() < 0.1 * change[:, :, 10:-10, 10:-10].abs().max()
    change.square().mean().backward()
    assert not [n for n, p in refiner.named_parameters() if p.grad is None or not p.grad.any()]
