"""The page in a real browser: what a user does, sees, and is told."""

import json
import time

import pytest
from PIL import Image

from vasa_hf.media import read_provenance, read_video
from vasa_hf.media.speech import can_speak

from ..testing_utils.axe import find_violations
from .conftest import ROOT, WAIT_MS

pytestmark = pytest.mark.e2e

AVATARS = ROOT / "model_cards" / "vasa3d-small" / "avatars"
SCREENS = (("desktop", (1440, 900)), ("phone", (390, 844)))
TABS = ("Talk", "3D", "Compare", "Explore", "About")
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


def status(page):
    return page.locator(".status:visible").first.inner_text()


def open_tab(page, tab):
    shown = page.get_by_role("tab", name=tab, exact=True)
    if not shown.is_visible():  # a phone has the last ones in a menu
        page.locator(".overflow-menu button").first.click()
        shown = page.locator(".overflow-dropdown button", has_text=tab)
    shown.click()


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
    seen = wait_for(lambda: status(page) if page.evaluate(PLAYING) else None)
    assert seen.startswith("Making frames") and "left" in seen
    # Without ffmpeg on the machine a download of the live stream would fail: it has no button.
    assert not page.locator("#talk-live").get_by_label("Download").count()
    assert page.get_by_role("button", name="Stop").is_visible()
    assert not page.get_by_role("button", name="Make it talk").is_visible()
    wait_for(lambda: "Done" in status(page))
    # One player: the file in place of the stream, from the time where that was.
    page.locator("#talk-live").wait_for(state="hidden")
    page.locator("#talk-video video").wait_for()
    wait_for(lambda: page.evaluate("document.querySelector('#talk-video video').currentTime") > 0)
    page.get_by_role("button", name="Stop").wait_for(state="hidden")
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
    page.get_by_role("button", name="Make it talk").click()
    page.locator("#talk-video").wait_for(state="hidden")  # old results go when a new run starts
    assert not page.locator("a[download*='settings.json']").is_visible()
    page.get_by_role("button", name="Stop").click()
    wait_for(lambda: status(page).startswith("Stopped"))
    assert not page.locator("#talk-live").is_visible()


def test_stop_ends_the_work_and_removes_its_files(page, server, portrait, voices):
    agree(page)
    upload(page, portrait, voices(15))
    page.get_by_role("button", name="Make it talk").click()
    wait_for(lambda: status(page).startswith("Making frames"))
    assert list(server.temporary.glob("vasa-hf-*/job-*"))
    page.get_by_role("button", name="Stop").first.click()
    wait_for(lambda: status(page).startswith("Stopped"))
    wait_for(lambda: not list(server.temporary.glob("vasa-hf-*/job-*")), seconds=30)
    time.sleep(1)
    assert status(page).startswith("Stopped")


def test_a_second_user_sees_the_place_in_the_queue(page, server, browser, portrait, voices):
    other = browser.new_page()
    other.set_default_timeout(WAIT_MS)
    other.goto(server.url)
    for one in (page, other):
        agree(one)
        upload(one, portrait, voices(4))
        one.get_by_text("One face found.").wait_for()
    page.get_by_role("button", name="Make it talk").click()
    wait_for(lambda: status(page).startswith("Making frames"))
    other.get_by_role("button", name="Make it talk").click()
    waits = wait_for(lambda: status(other) if "Waiting" in status(other) else None)
    assert waits.startswith("Waiting: place 1 in the queue") and "left" in waits
    page.get_by_role("button", name="Stop").click()
    wait_for(lambda: "Done" in status(other))
    other.close()


def test_errors_are_at_the_status_and_the_field_in_words_of_the_page(page, voices, tmp_path):
    upload(page, voice=voices(1))
    (tmp_path / "note.png").write_text("I am no picture.")
    upload(page, portrait=str(tmp_path / "note.png"))
    start = page.get_by_role("button", name="Make it talk")
    start.click()
    alert = page.get_by_role("alert")
    alert.filter(has_text="tick the consent box").wait_for()
    outline = "e => getComputedStyle(e).outlineStyle"
    assert page.locator("#consent").evaluate(outline) == "solid"
    agree(page)
    note = page.locator(".note", has_text="note.png").first
    note.wait_for()
    assert "“Portrait” must be" in note.inner_text() and str(tmp_path) not in note.inner_text()
    start.click()
    alert.filter(has_text="note.png").wait_for()
    assert page.locator("#consent").evaluate(outline) == "none"
    assert not page.get_by_test_id("toast-body").count()
    start.wait_for()  # and it can be tried again
    assert not page.locator("#talk-live").is_visible()


def test_an_example_fills_both_fields_and_makes_way_for_ones_own(page, portrait, tmp_path):
    agree(page)
    page.locator("table img").first.click()
    page.get_by_text("One face found.").wait_for()
    page.get_by_label("Play", exact=True).first.wait_for()
    (tmp_path / "note.png").write_text("I am no picture.")
    for path, answer in ((str(tmp_path / "note.png"), "“Portrait” must be"), (portrait, "One face found.")):
        page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
        page.get_by_text("One face found.").wait_for(state="hidden")
        upload(page, path)
        page.get_by_text(answer).first.wait_for()


def test_typed_text_becomes_a_voice(page):
    page.get_by_text("Type what to say").click()
    if not can_speak():
        page.get_by_text("apt-get install espeak-ng").wait_for()  # says what is missing
        return
    page.get_by_role("button", name="Speak").click()
    page.locator(".note", has_text="“Text” must have words").first.wait_for()
    page.get_by_label("Text", exact=True).fill("Good morning.")
    page.get_by_role("button", name="Speak").click()
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
    first = shown_picture(page, "Input of the model").get_attribute("src")
    faces = shown_picture(page, "Faces")
    box = faces.bounding_box()
    faces.click(position={"x": 0.78 * box["width"], "y": 0.5 * box["height"]})
    wait_for(lambda: chosen.nth(1).is_checked())
    wait_for(lambda: shown_picture(page, "Input of the model").get_attribute("src") != first)
    page.screenshot(path=artefacts / "two_faces.png", full_page=True)
    page.get_by_role("button", name="Make it talk").click()
    wait_for(lambda: "Done" in status(page))
    with page.expect_download() as settings:
        page.locator("a[download*='settings.json']").click()
    settings.value.save_as(tmp_path / "settings.json")
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["face"] == 1


def test_poses_and_dynamics_are_exchanged_on_a_sheet(page, portrait, voices, artefacts):
    agree(page)
    upload(page, portrait, voices(2))
    page.get_by_text("One face found.").wait_for()
    open_tab(page, "Explore")
    page.set_input_files("input[type=file][multiple] >> visible=false >> nth=0", str(AVATARS / "mara" / "portrait.png"))
    page.get_by_text("portrait").locator("visible=true").first.wait_for()
    page.get_by_role("button", name="Exchange").click()
    sheet = page.locator("#exchanged img").first
    wait_for(lambda: sheet.count() and sheet.evaluate("e => e.naturalWidth") > 0)
    wait_for(lambda: "Done" in status(page))
    size = sheet.evaluate("e => [e.naturalWidth, e.naturalHeight]")
    assert size == [6 * 192, 4 * (192 + 30)]  # two faces with the same motion, another pose, other dynamics
    page.screenshot(path=artefacts / "explore_exchange.png", full_page=True)


@pytest.mark.parametrize(
    ("tab", "slider", "image"),
    [("Explore", "Pose: yaw (degrees)", "moved along"), ("3D", "Turn (degrees)", "View from")],
)
def test_sliders_work_by_keyboard(page, portrait, tab, slider, image):
    agree(page)
    upload(page, portrait)
    page.get_by_text("One face found.").wait_for()
    open_tab(page, tab)
    shown = page.locator(".block:visible", has_text=image).locator("img")
    if tab == "3D":
        shown.first.wait_for()
    before = shown.first.get_attribute("src") if shown.count() else None
    page.get_by_label(f"range slider for {slider}").locator("visible=true").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    wait_for(lambda: shown.count() and shown.first.get_attribute("src") != before)


def test_keyframes_are_added_by_a_form_and_used(page, portrait, voices, tmp_path):
    agree(page)
    upload(page, portrait, voices(1))
    page.get_by_text("One face found.").wait_for()
    page.get_by_text("Keyframes: controls over time").locator("visible=true").click()
    fields = page.locator(".keyframes:visible")
    add = page.get_by_role("button", name="Add keyframe").locator("visible=true")
    fields.get_by_label("Time (seconds)").fill("0.5")
    add.click()
    page.get_by_text("Please set at least one").wait_for()

    def add_again():  # on a busy machine fields reach the page's state late, or not; a row of the same time is replaced
        fields.get_by_label("Time (seconds)").fill("0.5")
        fields.get_by_label("Head distance").fill("1.2")
        fields.get_by_label("Emotion", exact=True).click()
        page.get_by_role("option", name="happy").click()
        page.wait_for_timeout(500)
        add.click()
        page.wait_for_timeout(1000)
        return page.get_by_text("0.5 s: distance 1.2, happy").count()  # no zeros where nothing changes

    wait_for(add_again)
    page.get_by_role("button", name="Make it talk").click()
    wait_for(lambda: "Done" in status(page))
    with page.expect_download() as settings:
        page.locator("a[download*='settings.json']").click()
    settings.value.save_as(tmp_path / "settings.json")
    kept = json.loads((tmp_path / "settings.json").read_text())["settings"]["keyframes"]
    assert kept == [["0.5", "", "", "1.2", "happy", ""]]


@pytest.mark.slow
def test_a_fit_shows_its_last_preview_and_the_avatar(page, portrait):
    agree(page)
    open_tab(page, "3D")
    page.get_by_text("Fit an avatar to a portrait").click()
    page.set_input_files("input[type=file][accept*=image] >> visible=false >> nth=1", portrait)
    minutes = page.get_by_label("number input for Minutes")
    assert minutes.get_attribute("min") == "3"
    minutes.fill("3")
    page.get_by_role("button", name="Fit", exact=True).click()
    wait_for(lambda: page.locator(".status:visible", has_text="Done").count(), seconds=900)
    assert page.locator("#fit-preview img").evaluate("e => e.naturalWidth") > 0
    page.locator(".splat-viewer canvas[aria-label^=mine]").wait_for()


def test_about_has_all_cards_and_the_consent_names_children(page):
    assert "child" in page.locator("#consent").inner_text()
    open_tab(page, "About")
    for name in ("vasa-small", "vasa3d-small", "moda-small"):
        page.get_by_text(f"Model card: {name}").wait_for()
    assert "Never animate children" in page.locator("body").inner_text()


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [(name, size, scheme) for name, size in SCREENS for scheme in ("light", "dark")],
)
def test_every_tab_fits_and_is_accessible(server, browser, artefacts, name, size, scheme):
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.set_default_timeout(WAIT_MS)
    page.goto(server.url)
    page.locator("#consent").wait_for()
    complaints = {}
    for tab in TABS:
        open_tab(page, tab)
        page.wait_for_timeout(400)
        if tab == "3D":
            page.locator(".splat-viewer[data-state=shown]").wait_for()
            page.wait_for_timeout(1000)
        if tab in ("Talk", "3D"):
            page.evaluate(
                "document.querySelectorAll('button.label-wrap').forEach(b => b.checkVisibility() && b.click())"
            )
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        assert not page.locator("footer").first.inner_text().strip().startswith("·"), tab
        page.screenshot(path=artefacts / f"{tab}_{name}_{scheme}.png", full_page=True)
        if found := find_violations(page):
            complaints[tab] = found
    page.close()
    assert not complaints, json.dumps(complaints, indent=1)
