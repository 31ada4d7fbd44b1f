import dataclasses
import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from vasa_hf.geometry.crops import WHOLE_PICTURE_BOX
from vasa_hf.media.ffmpeg import ffmpeg_path
from vasa_hf.metrics.sharpness import laplacian_sharpness
from vasa_hf.processors.image import FaceImageProcessor

from ..testing_utils.heif import write_heic


@dataclasses.dataclass
class Face:
    """What the processor needs of a detected face."""

    box: torch.Tensor
    landmarks: torch.Tensor
    pose: torch.Tensor
    score: float = 0.9

    @property
    def side(self):
        return float((self.box[2:] - self.box[:2]).max())


def face_at(x0, y0, x1, y1, yaw=0.0, roll=0.0):
    grid = torch.stack(torch.meshgrid(torch.linspace(x0, x1, 18), torch.linspace(y0, y1, 9), indexing="xy"), dim=-1)
    pose = torch.tensor([yaw, 0.0, roll, 0.5, 0.5, 0.0, 0.3])
    return Face(torch.tensor([x0, y0, x1, y1]).float(), grid.reshape(-1, 2), pose)


@pytest.fixture
def processor():
    return FaceImageProcessor()


@pytest.fixture
def picture():
    """Left half red, right half blue; 120 wide, 80 high."""
    array = np.zeros((80, 120, 3), np.uint8)
    array[:, :60, 0] = 255
    array[:, 60:, 2] = 255
    return Image.fromarray(array)


def is_left_red_right_blue(tensor, tolerance=0.05):
    left, right = tensor[:, 40, 20], tensor[:, 40, 100]
    red, blue = torch.tensor([1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.0, 1.0])
    return (left - red).abs().max() < tolerance and (right - blue).abs().max() < tolerance


class TestLoad:
    @pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif"])
    def test_files(self, processor, picture, tmp_path, suffix):
        path = tmp_path / f"picture.{suffix}"
        picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
        for given in (path, str(path)):
            tensor = processor.load(given)
            assert tensor.shape == (3, 80, 120) and tensor.dtype == torch.float32
            assert is_left_red_right_blue(tensor)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff", "bmp", "jp2", "avif"])
    def test_files_that_are_cut_off(self, processor, picture, tmp_path, suffix):
        if suffix == "avif" and not features.check("avif"):
            pytest.skip("needs Pillow 11.3")
        noise = np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        for length in (1, 10, 40, 100, 500, len(data) // 2):
            path = tmp_path / f"cut.{suffix}"
            path.write_bytes(data[:length])
            with pytest.raises(ValueError, match="`image` must be a(n image file|n intact image file)"):
                processor.load(path)

    @pytest.mark.parametrize(("tile", "quarter_turns"), [(64, 0), (64, 1), (128, 0), (128, 3)])
    def test_heic(self, processor, tmp_path, tile, quarter_turns):
        """As telephones write it: one image or a grid of tiles, turned when shown."""
        array = np.zeros((128, 256, 3), np.uint8)
        array[:, :128, 0], array[:64, 128:, 2], array[64:, 128:, 1] = 220, 220, 200
        write_heic(tmp_path / "IMG_1.HEIC", array, tile, quarter_turns)
        (tmp_path / "IMG_1.HEIC").rename(tmp_path / "IMG_1.jpg")  # the name does not matter
        seen = processor.load(tmp_path / "IMG_1.jpg")
        expected = torch.from_numpy(np.rot90(array, quarter_turns).copy()).permute(2, 0, 1) / 127.5 - 1
        assert seen.shape == expected.shape
        assert (seen - expected).abs().median() < 0.05 and (seen - expected).abs().mean() < 0.05
        with pytest.raises(ValueError, match="pixels"):
            FaceImageProcessor(max_pixels=10_000).load(tmp_path / "IMG_1.jpg")
        data = (tmp_path / "IMG_1.jpg").read_bytes()
        for length in (12, 100, 400, len(data) - 2000):
            (tmp_path / "cut.heic").write_bytes(data[:length])
            with pytest.raises(ValueError, match="`image` must be an? (intact|whole)"):
                processor.load(tmp_path / "cut.heic")

    @pytest.mark.parametrize("suffix", ["jxl", "avif"])
    def test_images_that_ffmpeg_reads(self, processor, picture, tmp_path, suffix, monkeypatch):
        picture.save(tmp_path / "a.png")
        command = [ffmpeg_path(), "-v", "error", "-i", str(tmp_path / "a.png"), "-frames:v", "1"]
        subprocess.run([*command, str(tmp_path / f"a.{suffix}")], check=True)
        assert is_left_red_right_blue(processor.load(tmp_path / f"a.{suffix}"), 0.2)
        monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)  # Pillow before 11.3
        assert is_left_red_right_blue(processor.load(tmp_path / f"a.{suffix}"), 0.2)

    @pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
    def test_animations_by_their_first_frame(self, processor, picture, tmp_path, suffix):
        if suffix == "avif" and not features.check("avif"):
            pytest.skip("needs Pillow 11.3")
        others = [Image.new("RGB", picture.size, "green"), Image.new("RGB", picture.size, "white")]
        picture.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others)
        assert is_left_red_right_blue(processor.load(tmp_path / f"a.{suffix}"), 0.2)

    def test_only_images_are_opened(self, processor, tmp_path, monkeypatch):
        """Pillow hands an EPS, whatever it is called, to Ghostscript."""
        started = []
        monkeypatch.setattr("subprocess.check_call", lambda *a, **k: started.append(a))
        eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
        (tmp_path / "portrait.jpg").write_text(eps)
        with pytest.raises(ValueError, match="`image` must be an image file"):
            processor.load(tmp_path / "portrait.jpg")
        assert not started

    def test_exif_rotation_is_applied(self, processor, picture, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: shown 90 degrees clockwise
        turned = picture.transpose(Image.Transpose.ROTATE_90)
        turned.save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
        tensor = processor.load(tmp_path / "turned.jpg")
        assert tensor.shape == (3, 80, 120)
        assert is_left_red_right_blue(tensor, 0.2)

    def test_transparency_lies_over_the_background(self, picture):
        rgba = picture.convert("RGBA")
        alpha = Image.new("L", picture.size, 255)
        alpha.paste(0, (0, 0, 120, 20))
        rgba.putalpha(alpha)
        white = FaceImageProcessor().load(rgba)
        assert (white[:, 5] == 1).all() and is_left_red_right_blue(white)
        black = FaceImageProcessor(background=(0, 0, 0)).load(rgba)
        assert (black[:, 5] == -1).all()
        as_tensor = torch.from_numpy(np.asarray(rgba).copy()).permute(2, 0, 1)
        torch.testing.assert_close(FaceImageProcessor().load(as_tensor), white, atol=0.01, rtol=0)

    def test_palettes_with_and_without_transparency(self, processor, picture, tmp_path):
        assert is_left_red_right_blue(processor.load(picture.convert("P", palette=Image.Palette.ADAPTIVE)))
        palette = picture.quantize(4)
        palette.info["transparency"] = palette.getpixel((20, 40))
        palette.save(tmp_path / "p.png", transparency=palette.info["transparency"])
        tensor = processor.load(tmp_path / "p.png")
        assert (tensor[:, 40, 20] == 1).all()  # red is transparent: white shows

    def test_cmyk_grey_and_one_bit(self, processor, picture, tmp_path):
        picture.convert("CMYK").save(tmp_path / "c.jpg", quality=95)
        tensor = processor.load(tmp_path / "c.jpg")
        assert tensor[0, 40, 20] > 0.8 and tensor[2, 40, 20] < -0.5
        assert processor.load(picture.convert("L")).shape == (3, 80, 120)
        assert set(processor.load(picture.convert("1")).unique().tolist()) <= {-1.0, 1.0}

    def test_sixteen_bits(self, processor, tmp_path):
        ramp = np.tile(np.linspace(0, 65535, 100).astype(np.uint16), (70, 1))
        Image.fromarray(ramp).save(tmp_path / "deep.png")
        expected = torch.linspace(-1, 1, 100).expand(3, 70, 100)
        for given in (tmp_path / "deep.png", Image.fromarray(ramp), ramp, Image.fromarray(ramp.astype(np.int32))):
            torch.testing.assert_close(processor.load(given), expected, atol=1e-3, rtol=0)

    def test_arrays_and_tensors_agree(self, processor, picture):
        array = np.asarray(picture)
        expected = processor.load(picture)
        for given in (
            array,
            array.astype(np.float32) / 255,
            torch.from_numpy(array.copy()).permute(2, 0, 1),
            torch.from_numpy(array.copy()).permute(2, 0, 1).half() / 255,
        ):
            torch.testing.assert_close(processor.load(given), expected, atol=2e-3, rtol=0)
        assert processor.load(np.full((70, 90), 255, np.uint8)).min() == 1.0

    def test_large_images_are_shrunk_and_with_a_warning(self, caplog):
        with caplog.at_level(logging.INFO):
            tensor = FaceImageProcessor(max_side=200).load(Image.new("RGB", (400, 300), (255, 0, 0)))
        assert tensor.shape == (3, 150, 200)
        assert "400x300 pixels is shrunk to 200x150" in caplog.text

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("missing.png", r"`image` must be an image file, but '.*missing.png' does not exist"),
            (".", r"`image` must be an image file, but '.*' is a folder"),
            ("text.png", r"`image` must be an image file \(.*JPEG.*\), but '.*text.png' is not"),
            ("empty.png", "`image` must be an image file"),
            ("cut.jpg", r"`image` must be an intact image file, but '.*cut.jpg' is damaged"),
            ("cut.png", r"`image` must be an intact image file, but '.*cut.png' is damaged"),
        ],
    )
    def test_broken_files(self, processor, tmp_path, given, message):
        noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3)).astype(np.uint8)
        for name in ("cut.jpg", "cut.png"):
            Image.fromarray(noise).save(tmp_path / name)
            data = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(data[: len(data) // 2])
        (tmp_path / "text.png").write_text("this is no image")
        (tmp_path / "empty.png").touch()
        with pytest.raises(ValueError, match=message):
            processor.load(tmp_path / given)

    def test_too_many_pixels_are_refused_before_decoding(self, tmp_path):
        Image.new("1", (9000, 6000)).save(tmp_path / "huge.png")
        with pytest.raises(ValueError, match="`image` must have at most 50,000,000 pixels, but has 9000x6000"):
            FaceImageProcessor().load(tmp_path / "huge.png")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (Image.new("RGB", (200, 30)), "`image` must be at least 64 pixels on each side, but is 200x30"),
            (np.zeros((100, 100, 2), np.uint8), r"1, 3 or 4 channels, but is \(100, 100, 2\)"),
            (torch.zeros(100, 100, 3), r"`image` must be of shape \(channels, height, width\).*\(100, 100, 3\)"),
            (np.zeros((100, 100, 3), np.int64), "`image` must be uint8, uint16 or float, but is int64"),
            (torch.full((3, 100, 100), float("nan")), "`image` must hold finite numbers"),
            (torch.full((3, 100, 100), -1.0), r"`image` must hold values in \[0, 1\] if float, but has -1 to -1"),
            (np.full((100, 100, 3), 255.0), r"`image` must hold values in \[0, 1\] if float, but has 255 to 255"),
            (17, "`image` must be a file, a PIL image, an array or a tensor, but is a int"),
        ],
    )
    def test_other_bad_images(self, processor, given, message):
        with pytest.raises(ValueError, match=message):
            processor.load(given)


class TestChoose:
    def test_largest_is_taken_with_a_warning(self, processor, caplog):
        faces = [face_at(100, 100, 200, 220), face_at(300, 50, 360, 120)]
        with caplog.at_level(logging.WARNING):
            assert processor.choose(faces, (400, 500)) is faces[0]
        assert "2 faces were found (0: 120 px, 1: 70 px); the largest is used. Choose with `face=1`." in caplog.text
        caplog.clear()
        assert processor.choose(faces, (400, 500), face=1) is faces[1]
        assert not caplog.text

    @pytest.mark.parametrize(
        ("faces", "face", "message"),
        [
            ([], None, "`image` must show a face, but none was found"),
            ([face_at(10, 10, 90, 90)], 1, "`face` must be 0 to 0, as 1 were found, but is 1"),
            ([face_at(10, 10, 90, 90)], "left", "`face` must be 0 to 0, as 1 were found, but is 'left'"),
            ([face_at(10, 10, 30, 35)], None, "`image` must show a face of at least 32 pixels, but it has only 25"),
            ([face_at(-40, 10, 60, 110)], None, "`image` must show the whole face, but 39% of it is cut off"),
            (
                [face_at(100, 10, 180, 110, yaw=-1.2)],
                None,
                "at most 60 degrees, but this one is turned by 69",
            ),
        ],
    )
    def test_faces_that_cannot_be_animated(self, processor, faces, face, message):
        with pytest.raises(ValueError, match=message):
            processor.choose(faces, (300, 300), face=face)


class TestCrop:
    def test_standard_crop_of_a_box(self, processor):
        image = processor.load(np.random.default_rng(0).random((300, 400, 3)))
        crop = processor.crop(image, box=(150, 100, 250, 228))
        assert crop.image.shape == (3, 256, 256) and crop.side == pytest.approx(256)
        # centre (200, 164), raised by 5 % of 256: the crop is the slice from (72, 23.2)
        torch.testing.assert_close(
            crop.crop_from_image @ torch.tensor([72.0, 23.2, 1.0]).double(),
            torch.tensor([0.0, 0.0, 1.0]).double(),
            atol=1e-6,
            rtol=0,
        )
        assert processor.crop(image, face_at(150, 100, 250, 228), size=512, scale=1.5).image.shape == (3, 512, 512)

    def test_upright_follows_the_head(self):
        image = torch.zeros(3, 300, 400)
        face = face_at(150, 100, 250, 228, roll=0.3)
        turned = FaceImageProcessor(upright=True).crop(image, face)
        matrix = turned.image_from_crop
        assert float(torch.atan2(matrix[1, 0], matrix[0, 0])) == pytest.approx(0.3, abs=1e-6)
        straight = FaceImageProcessor().crop(image, face)
        assert float(straight.image_from_crop[1, 0]) == pytest.approx(0, abs=1e-9)

    def test_paste_back_is_the_way_back(self, processor):
        y, x = torch.meshgrid(torch.arange(300.0), torch.arange(400.0), indexing="ij")
        image = torch.stack([(x / 20).sin(), (y / 20).sin(), ((x - y) / 30).sin()]) * 0.9
        crop = processor.crop(image, box=(150, 100, 250, 228), angle_rad=0.2)
        same = processor.paste_back(image, crop.image, crop)
        assert (same - image).abs().max() < 0.02
        batch = processor.paste_back(image, torch.stack([crop.image, -crop.image]), crop)
        assert batch.shape == (2, 3, 300, 400)
        assert torch.equal(batch[0], same)
        assert (batch[1] - image).abs().max() > 0.5
        assert torch.equal(batch[1][:, :, :50], image[:, :, :50])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "`face` or `box` must be given"),
            ({"box": (1, 2, 3)}, r"`box` must be four numbers \(x0, y0, x1, y1\) in pixels, but is \(1, 2, 3\)"),
            ({"box": "left"}, "`box` must be four numbers"),
            ({"box": (90, 10, 20, 80)}, "`box` must be x0 < x1 <= 200 and y0 < y1 <= 150"),
            ({"box": (90, 10, 300, 80)}, "`box` must be x0 < x1 <= 200 and y0 < y1 <= 150"),
            ({"box": (90, 10, 100, 20)}, "`box` must be at least 32 pixels, but is 10x10"),
            ({"box": (10, 10, 100, 100), "scale": 0.2}, "`scale` must be 1.0 to 6.0, but is 0.2"),
            ({"box": (10, 10, 100, 100), "shift": (0, 3)}, r"`shift` must be two numbers in \[-1, 1\]"),
            ({"box": (10, 10, 100, 100), "angle_rad": 9.0}, "`angle_rad` must be -pi to pi, but is 9.0"),
            ({"box": (10, 10, 100, 100), "size": 5}, "`size` must be a whole number of 16 to 4096"),
        ],
    )
    def test_bad_crops(self, processor, options, message):
        with pytest.raises(ValueError, match=message):
            processor.crop(torch.zeros(3, 150, 200), **options)

    def test_paste_back_into_another_image_is_refused(self, processor):
        crop = processor.crop(torch.zeros(3, 150, 200), box=(50, 50, 100, 100))
        with pytest.raises(ValueError, match=r"`image` must be the cropped image, \(150, 200\), but is \(100, 200\)"):
            processor.paste_back(torch.zeros(3, 100, 200), crop.image, crop)
        with pytest.raises(ValueError, match=r"`crop_image` must be \(\[batch,\] 3, size, size\), but is \(3, 20"):
            processor.paste_back(torch.zeros(3, 150, 200), torch.zeros(3, 20, 30), crop)

    def test_preview_draws_boxes_points_and_the_crop(self, processor):
        image = torch.zeros(3, 300, 400)
        face = face_at(150, 100, 250, 228)
        crop = processor.crop(image, face)
        plain, drawn = np.asarray(processor.preview(image)), np.asarray(processor.preview(image, [face], crop))
        assert drawn.shape == (300, 400, 3)
        changed = (drawn != plain).any(-1)
        assert changed[100, 160:240].all()  # upper edge of the box
        assert changed[100:228, 150:250].mean() > 0.05  # landmarks
        assert changed[150, 70:75].any()  # left edge of the crop


# A portrait of 200 pixels in a photograph of 6000 x 4000, which `load` shrinks to 1920 x 1280: its upper left corner.
PLACE = (3900, 1300)
PORTRAIT = Path(__file__).resolve().parents[2] / "vasa_hf" / "assets" / "portrait.jpg"


@pytest.fixture(scope="module")
def photograph():
    photograph = Image.new("RGB", (6000, 4000), (90, 110, 100))
    with Image.open(PORTRAIT) as portrait:
        photograph.paste(portrait.convert("RGB").resize((200, 200), Image.Resampling.LANCZOS), PLACE)
    return photograph


@pytest.fixture(scope="module")
def box():
    """The face in pixels of the shrunk image: its crop is the portrait."""
    return [(p + f * 200) * 0.32 for p, f in zip(PLACE * 2, WHOLE_PICTURE_BOX, strict=True)]


@pytest.fixture(scope="module")
def true(photograph):
    """The crop at full detail, `(3, 256, 256)`."""
    x, y = PLACE
    around = np.asarray(photograph.crop((x - 100, y - 100, x + 300, y + 300)))
    processor = FaceImageProcessor()
    return processor.crop(processor.load(around), box=[100 + f * 200 for f in WHOLE_PICTURE_BOX]).image


class TestLargePictures:
    def test_a_small_face_is_cut_from_the_full_image(self, photograph, box, true, tmp_path):
        processor, path = FaceImageProcessor(min_face=20), tmp_path / "large.jpg"
        photograph.save(path, quality=97, subsampling=0)
        loaded = processor.load(path)
        assert loaded.shape == (3, 1280, 1920)
        shrunk, full = processor.crop(loaded, box=box), processor.crop(loaded, box=box, original=path)
        sharpness = [float(laplacian_sharpness((crop[None] + 1) / 2)) for crop in (true, full.image, shrunk.image)]
        assert sharpness[1] == pytest.approx(sharpness[0], rel=0.1) and sharpness[2] < 0.5 * sharpness[0]
        assert (full.image - true).abs().mean() < 0.02 < (shrunk.image - true).abs().mean()
        # It goes back to where it was in the shrunk image.
        assert torch.equal(full.crop_from_image, shrunk.crop_from_image) and full.image_size == (1280, 1920)

    def test_all_kinds_give_the_same_crop(self, photograph, box, true):
        processor = FaceImageProcessor(min_face=20)
        array = np.asarray(photograph)
        clear = photograph.convert("RGBA")
        for given in (photograph, clear, array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
            crop = processor.crop(processor.load(given), box=box, original=given)
            torch.testing.assert_close(crop.image, true, atol=0.01, rtol=0)

    def test_exif_rotation_holds_for_the_full_image(self, photograph, box, true, tmp_path):
        processor, path, exif = FaceImageProcessor(min_face=20), tmp_path / "turned.jpg", Image.Exif()
        exif[0x0112] = 6
        photograph.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=97, subsampling=0)
        loaded = processor.load(path)
        assert loaded.shape == (3, 1280, 1920)
        assert (processor.crop(loaded, box=box, original=path).image - true).abs().mean() < 0.02

    def test_a_large_face_is_cut_from_what_was_loaded(self, photograph, tmp_path):
        """No second reading where the shrunk image has the detail; the file is gone, which would raise."""
        processor, path = FaceImageProcessor(), tmp_path / "large.jpg"
        photograph.save(path, quality=90)
        loaded = processor.load(path)
        path.unlink()
        box = (600, 300, 1000, 800)
        assert torch.equal(processor.crop(loaded, box=box, original=path).image, processor.crop(loaded, box=box).image)

    def test_a_large_jpeg_is_shrunk_as_well_when_decoded_at_half_its_size(self, photograph, tmp_path, caplog):
        path = tmp_path / "large.jpg"
        photograph.save(path, quality=97, subsampling=0)
        with caplog.at_level(logging.INFO):
            from_file = FaceImageProcessor().load(path)
        assert "6000x4000 pixels is shrunk to 1920x1280" in caplog.text
        assert (from_file - FaceImageProcessor().load(photograph)).abs().mean() < 0.01


class TestSaving:
    def test_save_and_load(self, tmp_path):
        saved = FaceImageProcessor(size=128, scale=1.8, shift=(0.1, -0.05), feather=0.2)
        saved.save_pretrained(tmp_path)
        loaded = FaceImageProcessor.from_pretrained(tmp_path)
        assert loaded.to_dict() == saved.to_dict()
        image = torch.rand(3, 300, 400, generator=torch.Generator().manual_seed(0))
        a, b = (p.crop(image, box=(150, 100, 250, 228)) for p in (saved, loaded))
        assert torch.equal(a.image, b.image)

    def test_unknown_options_fail(self):
        with pytest.raises(ValueError, match="`resolution` is no option of FaceImageProcessor"):
            FaceImageProcessor(resolution=3)
