import math

import pytest
import torch

from vasa_hf.geometry.crops import (
    changed_share,
    crop_matrix,
    cut_crop,
    paste,
    paste_window,
    sampling_grid,
    soft_square,
    standard_crop,
    transform_points,
)


def smooth_picture(height, width):
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([(x / 9).sin(), (y / 7).cos(), ((x + y) / 11).sin()])


def test_corners_of_a_square_lie_where_they_should():
    matrix = crop_matrix(torch.tensor([50.0, 40.0]), torch.tensor(20.0))
    corners = transform_points(matrix, torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5]]))
    expected = torch.tensor([[40.0, 30.0], [60.0, 30.0], [60.0, 50.0], [50.0, 40.0]])
    torch.testing.assert_close(corners, expected)


def test_a_clockwise_turn_moves_the_top_edge_to_the_right():
    matrix = crop_matrix(torch.tensor([0.0, 0.0]), torch.tensor(2.0), math.pi / 2)
    top_middle = transform_points(matrix, torch.tensor([[0.5, 0.0]]))
    torch.testing.assert_close(top_middle, torch.tensor([[1.0, 0.0]]), atol=1e-6, rtol=0)


def test_standard_crop_is_twice_the_box_and_five_percent_raised():
    matrix = standard_crop(torch.tensor([10.0, 20.0, 50.0, 80.0]))  # larger side 60, centre (30, 50)
    corners = transform_points(matrix, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    torch.testing.assert_close(corners, torch.tensor([[-30.0, -16.0], [90.0, 104.0]]))
    moved = standard_crop(torch.tensor([10.0, 20.0, 50.0, 80.0]), scale=1.0, shift=(0.5, 0.25))
    corners = transform_points(moved, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    torch.testing.assert_close(corners, torch.tensor([[30.0, 32.0], [90.0, 92.0]]))


def test_the_turned_crop_is_shifted_along_its_own_axes():
    box = torch.tensor([-5.0, -5.0, 5.0, 5.0])
    middle = torch.tensor([[0.5, 0.5]])
    straight = transform_points(standard_crop(box, shift=(0.3, 0.1)), middle)[0]
    turned = transform_points(standard_crop(box, shift=(0.3, 0.1), angle_rad=math.pi / 2), middle)[0]
    torch.testing.assert_close(turned, torch.stack([-straight[1], straight[0]]), atol=1e-5, rtol=0)


def test_points_there_and_back_are_exact():
    torch.manual_seed(0)
    matrix = standard_crop(torch.tensor([103.0, 77.0, 411.0, 390.0]).double(), 1.7, (0.05, -0.02), 0.4)
    points = torch.rand(30, 2).double() * 500
    back = transform_points(matrix, transform_points(torch.linalg.inv(matrix), points))
    torch.testing.assert_close(back, points, atol=1e-9, rtol=0)


def test_sampling_grid_against_a_naive_loop():
    matrix = crop_matrix(torch.tensor([[5.0, 4.0]]), torch.tensor([6.0]), 0.3)
    grid = sampling_grid(matrix, 4, (8, 10))
    for row in range(4):
        for column in range(4):
            fraction = torch.tensor([(column + 0.5) / 4, (row + 0.5) / 4, 1.0])
            pixel = matrix[0] @ fraction
            expected = torch.stack([2 * pixel[0] / 10 - 1, 2 * pixel[1] / 8 - 1])
            torch.testing.assert_close(grid[0, row, column], expected)


def test_a_crop_in_whole_pixels_is_a_slice():
    torch.manual_seed(0)
    image = torch.rand(3, 40, 50)
    crop = cut_crop(image, crop_matrix(torch.tensor([22.0, 18.0]), torch.tensor(16.0)), 16)
    torch.testing.assert_close(crop, image[:, 10:26, 14:30], atol=1e-5, rtol=0)


def test_beyond_the_image_its_edge_goes_on_blurred_with_distance():
    image = torch.zeros(3, 100, 100)
    image[:, ::8] = image[:, 1::8] = image[:, 2::8] = image[:, 3::8] = 1.0  # stripes that end at the image's side
    crop = cut_crop(image, crop_matrix(torch.tensor([0.0, 50.0]), torch.tensor(200.0)), 200)
    torch.testing.assert_close(crop[:, 50:150, 100:], image, atol=1e-4, rtol=0)
    contrast = crop[0, 60:140, :100].std(0)
    assert contrast[99] > 0.4 and contrast[:90].max() < 0.05
    assert 0.3 < crop[0, 100, 50] < 0.7
    inside = cut_crop(image, crop_matrix(torch.tensor([50.0, 50.0]), torch.tensor(60.0)), 60)
    torch.testing.assert_close(inside, image[:, 20:80, 20:80], atol=1e-4, rtol=0)


def test_shrinking_averages_fine_patterns():
    image = torch.zeros(3, 512, 512)
    image[:, ::2, ::2] = 1.0
    image[:, 1::2, 1::2] = 1.0  # a chessboard: any plain sampling would show moire
    crop = cut_crop(image, crop_matrix(torch.tensor([256.0, 256.0]), torch.tensor(480.0), 0.2), 64)
    assert (crop - 0.5).abs().max() < 0.05


def test_a_shrunk_crop_keeps_its_place():
    image = smooth_picture(400, 420)
    matrix = crop_matrix(torch.tensor([210.0, 190.0]), torch.tensor(300.0), 0.3)
    crop = cut_crop(image, matrix, 100)
    x = (torch.arange(100) + 0.5) / 100
    points = torch.stack(torch.meshgrid(x, x, indexing="xy"), dim=-1).reshape(-1, 2)
    pixel = transform_points(matrix, points)
    expected = (pixel[:, 0] / 9).sin().view(100, 100)
    # The filter takes a little off the tops of the waves; half a pixel of shift would be 0.17.
    assert (crop[0] - expected).abs().mean() < 0.05


def test_soft_square_is_one_inside_and_zero_at_the_border():
    weight = soft_square(torch.tensor([[0.5, 0.5], [0.2, 0.7], [0.0, 0.5], [1.0, 1.0], [-0.4, 0.5], [0.06, 0.5]]), 0.12)
    torch.testing.assert_close(weight[:5], torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))
    assert abs(float(weight[5]) - 0.5) < 1e-5


@pytest.mark.parametrize("angle", [0.0, 0.35])
@pytest.mark.parametrize("side", [60.0, 150.0])
def test_pasting_back_an_untouched_crop_leaves_the_image(angle, side):
    image = smooth_picture(180, 200)
    matrix = crop_matrix(torch.tensor([90.0, 80.0]), torch.tensor(side), angle)
    crop = cut_crop(image, matrix, 256)
    window = paste_window(matrix, (180, 200))
    pasted = paste(image, crop, window)
    assert (pasted - image).abs().max() < 0.03  # two bilinear samplings of a wave 44 pixels long
    assert torch.equal(pasted[:, 175:], image[:, 175:])


def test_pasted_content_arrives_in_the_middle_only():
    image = torch.zeros(3, 100, 120)
    window = paste_window(crop_matrix(torch.tensor([100.0, 50.0]), torch.tensor(60.0)), (100, 120))  # over the edge
    pasted = paste(image, torch.ones(3, 64, 64), window)
    assert pasted[:, 40:60, 85:110].min() == 1.0
    assert pasted[:, :, :69].max() == 0.0
    assert pasted.shape == image.shape
    assert image.max() == 0.0  # the input stays as it was


def test_a_crop_outside_of_the_image_cannot_be_pasted():
    with pytest.raises(ValueError, match="`image_from_crop` must overlap the image of 120x100 pixels"):
        paste_window(crop_matrix(torch.tensor([500.0, 50.0]), torch.tensor(60.0)), (100, 120))


@pytest.mark.parametrize("size", [40, 256])
def test_what_did_not_change_keeps_the_images_pixels(size):
    """Finer and coarser crops than the image: what the crop blurred comes back only where it changed."""
    picture = torch.rand(3, 160, 200) * 2 - 1
    matrix = crop_matrix(torch.tensor([100.0, 80.0]), torch.tensor(120.0))
    window, own = paste_window(matrix, (160, 200)), cut_crop(picture, matrix, size)
    assert torch.equal(paste(picture, own, window, own), picture)
    changed = own.clone()
    changed[:, size * 3 // 8 : size * 5 // 8, size * 3 // 8 : size * 5 // 8] = 0.9
    pasted = paste(picture, changed, window, own)
    assert (pasted[:, 67:93, 87:113] - 0.9).abs().max() < 0.01
    still = torch.ones(160, 200, dtype=torch.bool)
    still[50:110, 70:130] = False  # the changed quarter with a tenth of the side around it
    assert torch.equal(pasted[:, still], picture[:, still])


def test_a_change_is_whole_inside_and_fades_smoothly():
    own = torch.zeros(3, 256, 256)
    changed = own.clone()
    changed[1, 100:156, 100:156] = 14.1 / 127.5
    changed[1, 120:124, 120:124] = 0  # a spot that happens to be the same does not stay still
    share = changed_share(changed, own)
    assert (share[0, 104:152, 104:152] == 1).all() and share[0, :88].max() == 0
    assert (share[0, 1:] - share[0, :-1]).abs().max() < 0.2
    assert changed_share(own + 3.9 / 127.5, own).max() == 0


def test_a_slight_change_keeps_the_images_detail():
    """A coarse crop that is a little brighter: the image gets brighter, and stays as sharp as it was."""
    picture = torch.rand(3, 160, 200) - 0.5
    matrix = crop_matrix(torch.tensor([100.0, 80.0]), torch.tensor(120.0))
    window, own = paste_window(matrix, (160, 200)), cut_crop(picture, matrix, 40)
    pasted = paste(picture, own + 3.9 / 127.5, window, own)
    brighter = picture[:, 50:110, 70:130] + 3.9 / 127.5
    torch.testing.assert_close(pasted[:, 50:110, 70:130], brighter, atol=1e-5, rtol=0)


def test_a_pasted_crop_has_no_edge():
    """White into black: no step between neighbours is steeper than the soft border allows, also at odd sizes."""
    for side, size in ((151.0, (201, 333)), (64.0, (97, 121))):
        picture = -torch.ones(3, *size)
        middle = torch.tensor([size[1] / 2 + 0.3, size[0] / 2 - 0.4])
        window = paste_window(crop_matrix(middle, torch.tensor(side)), size)
        pasted = paste(picture, torch.ones(3, 128, 128), window)
        assert pasted.shape == picture.shape and pasted.max() == 1 and pasted.min() == -1
        steepest = 2 * 1.5 / (0.12 * side)  # a smooth step rises 1.5 times as fast as a straight line
        for axis in (1, 2):
            step = pasted.diff(dim=axis).abs()
            assert step.max() < steepest * 1.05
            # Nor a bend: it begins and ends flat.
            assert pasted.diff(n=2, dim=axis).abs().max() < 12 / (0.12 * side) ** 2 * 1.1


def test_other_people_stay_as_they_are():
    """A second face in the crop, and a small one far behind: their pixels stay; the face itself is pasted whole."""
    picture, matrix = torch.zeros(3, 200, 300), crop_matrix(torch.tensor([120.0, 100.0]), torch.tensor(180.0))
    box = torch.tensor([80.0, 60.0, 160.0, 140.0])
    others = torch.tensor([[170.0, 60.0, 240.0, 130.0], [50.0, 140.0, 62.0, 152.0]])
    window = paste_window(matrix, (200, 300), 0.12, box, others)
    pasted = paste(picture, torch.ones(3, 64, 64), window)
    assert pasted[:, 60:140, 80:155].min() > 0.9
    assert pasted[:, 60:130, 178:240].max() < 0.02 and pasted[:, 142:150, 52:60].max() < 0.02
    assert pasted[:, 160:170, 100:140].min() > 0.9  # the body belongs to the face over it
    assert pasted[:, 60:130, 140:260].diff(dim=2).abs().max() < 0.15  # towards the other person, no edge
