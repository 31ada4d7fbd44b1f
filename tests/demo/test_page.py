"""The page in a real browser: what a user does, sees, and is told."""

import json
import time

import pytest
from PIL import Image

from vasa_hf.media import read_provenance, read_video

from .conftest import ROOT

AVATARS = ROOT / "model_cards" / "vasa3d-small" / "avatars"
TABS = ("Talk", "3D", "Compare", "Inspect", "About")
PLAYING = """() => [...document.querySelectorAll('video')]
    .some(v => v.readyState >= 2 && v.currentTime > 0 && v.videoWidth > 0 && v.webkitAudioDecodedByteCount > 0)"""


def agree(page):
    page.locator("#consent input").check()


def upload(page, portrait=None, voice=None):
    if portrait:
        page.set_input_files("input[type=file][accept*=image] >> nth=0", portrait)
    if voice:
        page.set_input_files("input[type=file][accept*=audio] >> nth=0", voice)
        page.get_by_label("Play", exact=True).first.wait_for()


def told(page):
    return page.locator(".status:visible").first.inner_text()


def wait_for(condition, seconds=120, every=0.15):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError("it did not happen in time")


def test_a_portrait_talks_and_plays_before_it_is_done(page, portrait, voices, tmp_path, artefacts):
    agree(page)
    upload(page, portrait, voices(4))
    page.get_by_text("One face found.").wait_for()
    page.get_by_role("button", name="Make it talk").click()
    seen = wait_for(lambda: told(page) if page.evaluate(PLAYING) else None)
    assert seen.startswith("Making frames") and "left" in seen
    wait_for(lambda: "Done" in told(page))
    with page.expect_download() as video:
        page.locator("a[download*='talking_face.mp4']").last.click()
    video.value.save_as(tmp_path / "out.mp4")
    reader = read_video(tmp_path / "out.mp4")
    assert reader.has_audio and len(list(reader)) == 100 and reader.size == (256, 256)
    assert read_provenance(tmp_path / "out.mp4")["model"]
    with page.expect_download() as settings:
        page.locator("a[download*='settings.json']").click()
    settings.value.save_as(tmp_path / "settings.json")
    about = json.loads((tmp_path / "settings.json").read_text())
    assert about["settings"]["seed"] >= 0 and about["inputs"]["image"]["file"] == "portrait.jpg"
    page.screenshot(path=artefacts / "talk_done.png", full_page=True)


def test_stop_ends_the_work_and_removes_its_files(page, server, portrait, voices):
    agree(page)
    upload(page, portrait, voices(15))
    page.get_by_role("button", name="Make it talk").click()
    wait_for(lambda: told(page).startswith("Making frames"))
    assert list(server.temporary.glob("vasa-hf-*/job-*"))
    page.get_by_role("button", name="Stop").first.click()
    wait_for(lambda: told(page).startswith("Stopped"))
    wait_for(lambda: not list(server.temporary.glob("vasa-hf-*/job-*")), seconds=30)
    time.sleep(1)
    assert told(page).startswith("Stopped")


def test_bad_files_and_missing_consent_are_told_in_words(page, voices, tmp_path):
    upload(page, voice=voices(1))
    (tmp_path / "note.png").write_text("I am no picture.")
    upload(page, portrait=str(tmp_path / "note.png"))
    page.get_by_role("button", name="Make it talk").click()
    page.get_by_text("have agreed").last.wait_for()
    agree(page)
    problem = page.get_by_test_id("toast-body").filter(has_text="note.png").first
    problem.wait_for()
    assert "image must be" in problem.inner_text() and str(tmp_path) not in problem.inner_text()


def test_an_example_fills_both_fields_and_makes_way_for_ones_own(page, portrait, tmp_path):
    agree(page)
    page.locator("table img").first.click()
    page.get_by_text("One face found.").wait_for()
    page.get_by_label("Play", exact=True).first.wait_for()
    (tmp_path / "note.png").write_text("I am no picture.")
    for path, answer in ((str(tmp_path / "note.png"), "image must be"), (portrait, "One face found.")):
        page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
        page.get_by_text("One face found.").wait_for(state="hidden")
        upload(page, path)
        page.get_by_text(answer).first.wait_for()


def test_typed_text_becomes_a_voice(page):
    field = page.get_by_text("Type what to say")
    if not field.is_visible():
        pytest.skip("needs a speech synthesiser: apt-get install espeak-ng")
    field.click()
    page.get_by_label("Text", exact=True).fill("Good morning.")
    page.get_by_role("button", name="Speak it").click()
    page.get_by_label("Play", exact=True).first.wait_for()


def shown_picture(page, label):
    """The picture under a label."""
    return page.locator(".block", has_text=label).locator("img:visible").first


def test_of_several_faces_one_is_picked_by_a_click(page, portrait, voices, tmp_path, artefacts):
    two = Image.new("RGB", (900, 520), "white")
    for name, side, place in (("theo", 512, (0, 4)), ("mara", 380, (516, 70))):
        two.paste(Image.open(AVATARS / name / "portrait.png").convert("RGB").resize((side, side)), place)
    two.save(tmp_path / "two.png")
    agree(page)
    upload(page, portrait)
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    upload(page, str(tmp_path / "two.png"), voices(1))  # while the first one's face is still looked for
    page.get_by_text("2 faces found").wait_for()
    chosen = page.locator("fieldset", has_text="Face to animate").locator("input")
    assert [one.is_checked() for one in chosen.all()] == [True, False]
    first = shown_picture(page, "What the model sees").get_attribute("src")
    faces = shown_picture(page, "Faces")
    box = faces.bounding_box()
    faces.click(position={"x": 0.78 * box["width"], "y": 0.5 * box["height"]})
    wait_for(lambda: chosen.nth(1).is_checked())
    wait_for(lambda: shown_picture(page, "What the model sees").get_attribute("src") != first)
    page.screenshot(path=artefacts / "two_faces.png", full_page=True)
    page.get_by_role("button", name="Make it talk").click()
    wait_for(lambda: "Done" in told(page))
    with page.expect_download() as settings:
        page.locator("a[download*='settings.json']").click()
    settings.value.save_as(tmp_path / "settings.json")
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["face"] == 1


def test_poses_and_dynamics_are_exchanged_on_a_sheet(page, portrait, voices, artefacts):
    agree(page)
    upload(page, portrait, voices(2))
    page.get_by_text("One face found.").wait_for()
    page.get_by_role("tab", name="Inspect", exact=True).click()
    page.set_input_files("input[type=file][multiple] >> visible=false >> nth=0", str(AVATARS / "mara" / "portrait.png"))
    page.get_by_text("portrait").locator("visible=true").first.wait_for()
    page.get_by_role("button", name="Exchange").click()
    sheet = page.locator("#exchanged img").first
    wait_for(lambda: sheet.count() and sheet.evaluate("e => e.naturalWidth") > 0)
    assert "Done" in told(page)
    size = sheet.evaluate("e => [e.naturalWidth, e.naturalHeight]")
    assert size == [6 * 192, 4 * (192 + 30)]  # two faces with the same motion, another pose, other dynamics
    page.screenshot(path=artefacts / "inspect_exchange.png", full_page=True)


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [("desktop", (1280, 900), "light"), ("phone", (390, 844), "light"), ("desktop", (1280, 900), "dark")],
)
def test_every_tab_fits_and_every_control_has_a_name(server, browser, artefacts, name, size, scheme):
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.goto(server.url)
    page.locator("#consent").wait_for(timeout=120_000)
    for tab in TABS:
        shown = page.get_by_role("tab", name=tab, exact=True)
        if not shown.is_visible():  # a phone has the last ones in a menu
            page.locator(".overflow-menu button").first.click()
            shown = page.locator(".overflow-dropdown button", has_text=tab)
        shown.click()
        page.wait_for_timeout(400)
        if tab == "3D":
            page.locator(".splat-viewer[data-state=shown]").wait_for(timeout=120_000)
            page.wait_for_timeout(1000)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        nameless = page.evaluate("""() => [...document.querySelectorAll('input, select, textarea')]
            .filter(e => e.checkVisibility() && e.type !== 'file' && !e.labels?.length && !e.ariaLabel && !e.title
                    && !e.getAttribute('aria-labelledby'))
            .map(e => e.outerHTML.slice(0, 200))""")
        assert not nameless, (tab, nameless)
        page.screenshot(path=artefacts / f"{tab}_{name}_{scheme}.png", full_page=True)
    page.close()
