"""The avatar that is turned in the page: a browser draws it as `render` does."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.testing_utils.browser import CHROMIUM
from vasa_hf import Vasa3DAvatarPipeline
from vasa_hf.hub import embedded_path

from .conftest import WAIT_MS

SHOWN = ".splat-viewer[data-state=shown]"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not (embedded_path("vasa3d-small") / "avatars").is_dir(), reason="the embedded avatars are not here"
    ),
]


@pytest.fixture(scope="module")
def pipe():
    return Vasa3DAvatarPipeline.from_pretrained("vasa3d-small")


def open_3d(page):
    page.get_by_role("tab", name="3D", exact=True).click()
    page.locator(SHOWN).wait_for()
    return page.locator(".splat-viewer canvas")


def pixels(canvas):
    """What is seen on the canvas, `(side, side, 3)`, without its border and the rounding of its corners."""
    side = canvas.evaluate("c => c.width")
    picture = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"), np.float32)
    return picture[1 : 1 + side, 1 : 1 + side], side


def settled(canvas):
    """`pixels` once two in a row are equal."""
    before = pixels(canvas)[0]
    for _ in range(50):
        canvas.page.wait_for_timeout(150)
        now, side = pixels(canvas)
        if before.shape == now.shape and np.array_equal(before, now):
            return now, side
        before = now
    raise AssertionError("the picture does not come to rest")


def apart(shown, pipe, name, azimuth, tilt=0.0):
    """Mean difference, of 255, to the offline picture of the same camera."""
    picture, side = shown
    offline = pipe.contact_sheet(name, (float(azimuth),), elevation_deg=float(tilt), output_size=side)
    return np.abs(picture - np.asarray(offline, np.float32))[8:-8, 8:-8].mean()


def test_it_looks_like_the_offline_picture_from_every_side(page, pipe, artefacts):
    canvas = open_3d(page)
    canvas.focus()
    seen = {}
    for keys, azimuth, tilt, told in (
        ([], 0, 0, "from the front"),
        (["ArrowRight"] * 6, 30, 0, "30° from the right"),
        (["Home", *["ArrowLeft"] * 8], -40, 0, "40° from the left"),
        (["0", *["ArrowRight"] * 3, *["ArrowUp"] * 3], 15, 15, "15° from above"),
    ):
        for key in keys:
            page.keyboard.press(key)
        page.locator(".splat-viewer .where", has_text=told).wait_for()
        seen[azimuth] = settled(canvas)
        assert seen[azimuth][0].std() > 40  # not blank
        # 8 bits a channel instead of floats, and .splat's rounding: 2 of 255 here; 5 degrees more are 9.
        assert apart(seen[azimuth], pipe, "mara", azimuth, tilt) < 4
        canvas.screenshot(path=artefacts / f"splat_{azimuth}_{tilt}.png")
    assert apart(seen[30], pipe, "mara", 35) > 6  # the measure sees a small turn
    assert np.abs(seen[30][0] - seen[-40][0]).mean() > 15


def test_another_avatar_a_dark_ground_zoom_and_drag(page, pipe):
    canvas = open_3d(page)
    page.get_by_label("Avatar", exact=True).first.click()
    page.get_by_role("option", name="theo").click()
    page.locator(".splat-viewer canvas[aria-label^=theo]").wait_for()
    front = settled(canvas)
    assert apart(front, pipe, "theo", 0) < 4
    page.get_by_role("button", name="Dark background").click()
    dark, _ = settled(canvas)
    assert dark[20, 20].max() < 40 and front[0][20, 20].min() > 250
    canvas.focus()
    page.keyboard.press("-")
    away, _ = settled(canvas)
    assert (away.max(-1) > 60).sum() < 0.95 * (dark.max(-1) > 60).sum()
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - box["width"] / 6, middle[1], steps=4)
    page.mouse.up()
    assert page.locator(".splat-viewer .where").inner_text() == "30° from the right, 0° from above"
    page.get_by_role("button", name="Front", exact=True).click()
    assert page.locator(".splat-viewer .where").inner_text() == "from the front"


def test_fingers_turn_it_and_still_scroll_the_page(server, browser, artefacts):
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.set_default_timeout(WAIT_MS)
    page.goto(server.url)
    page.locator("#consent").wait_for()
    canvas = open_3d(page)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)

    def swipe(dx, dy):
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for step in range(1, 9):
            points = [{"x": x + dx * step / 8, "y": y + dy * step / 8}]
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": points})
            page.wait_for_timeout(30)
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    swipe(-90, 0)
    assert "from the right" in page.locator(".splat-viewer .where").inner_text()
    page.screenshot(path=artefacts / "splat_phone.png")
    before = page.evaluate("scrollY")
    swipe(0, -150)
    page.wait_for_timeout(300)
    assert page.evaluate("scrollY") > before
    page.close()


def test_without_webgl_it_is_told_what_works_instead(server, browser):
    plain = browser.browser_type.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-3d-apis"])
    page = plain.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(server.url)
    page.get_by_role("tab", name="3D", exact=True).click()
    page.locator(".splat-viewer .note", has_text="no WebGL 2").wait_for()
    page.get_by_role("button", name="Export the Gaussians").click()
    page.locator("a[download*='avatar.splat']").wait_for()  # the files are there all the same
    plain.close()
