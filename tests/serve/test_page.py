"""The page of `vasa-hf serve` in a browser with a made-up microphone, with the embedded weights."""

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.serve.conftest import serving
from tests.testing_utils.axe import find_violations
from vasa_hf import VasaTalkingFacePipeline
from vasa_hf.hub import embedded_path
from vasa_hf.media.speech import can_speak

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (embedded_path("vasa-small") / "face_autoencoder").is_dir(), reason="needs the weights"),
]
WAIT_MS = 60_000
OUTPUT = os.environ.get("VASA_HF_SCREENSHOTS")
# The loudest sample that waits to be played.
LOUDNESS = """() => { const seen = sources.map(s => s.buffer.getChannelData(0)).filter(x => x.length);
return Math.max(0, ...seen.map(x => Math.max(...x.map(Math.abs)))); }"""
# The middle of the canvas is opaque, and has dark and bright places.
HAS_FACE = """() => { const seen = document.getElementById('face').getContext('2d').getImageData(64, 64, 128, 128).data;
const red = seen.filter((_, place) => place % 4 === 0), alpha = seen.filter((_, place) => place % 4 === 3);
return Math.min(...alpha) === 255 && Math.max(...red) - Math.min(...red) > 80; }"""


def save(page, name):
    if OUTPUT:
        page.screenshot(path=str(Path(OUTPUT) / f"{name}.png"), full_page=True)


@pytest.fixture(scope="module")
def address():
    pipe = VasaTalkingFacePipeline.from_pretrained("vasa-small")
    pipe.set_progress_bar_config(disable=True)
    with serving(pipe, options={}) as (address, _):
        yield address


def state(page, text):
    page.wait_for_function("t => document.getElementById('state').textContent.includes(t)", arg=text, timeout=WAIT_MS)


@pytest.mark.parametrize("size", [(390, 844), (1280, 900)])
def test_a_conversation(browser, address, size):
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, permissions=["microphone"])
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"http://{address}/")
    assert page.locator("#begin").is_disabled()  # no consent
    page.wait_for_function(HAS_FACE)  # the example, before a session begins
    save(page, f"before-{size[0]}")
    page.locator("#consent").check()
    page.locator("#begin").click()
    state(page, "Idle")
    page.wait_for_function("document.body.dataset.frames > 5", timeout=WAIT_MS)
    save(page, f"idle-{size[0]}")
    assert page.evaluate(HAS_FACE)
    if can_speak():
        page.locator("#text").fill("Hello, I am not a real person. " * 40)
        page.locator("#say").click()
        state(page, "Speaking")
        page.wait_for_function(f"() => ({LOUDNESS})() > 0.05", timeout=WAIT_MS)
        save(page, f"speaking-{size[0]}")
        page.locator("#interrupt").click()
        begun = time.monotonic()
        state(page, "Idle")
        assert time.monotonic() - begun < 20  # of 80 s of speech, on loaded machines too
    page.locator("#listen").click()
    state(page, "Listening")
    save(page, f"listening-{size[0]}")
    page.locator("#listen").click()
    page.locator("#microphone").click()  # beeps of a made-up microphone are what the face says
    state(page, "Speaking")
    page.locator("#microphone").click()
    page.locator("#end").click()
    state(page, "Ended")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert not problems
    assert not find_violations(page)
    context.close()


def test_a_refusal_is_shown(browser, address, tmp_path):
    Image.new("RGB", (200, 200), "gray").save(tmp_path / "grey.png")
    page = browser.new_page()
    page.goto(f"http://{address}/")
    page.locator("#portrait").set_input_files(str(tmp_path / "grey.png"))
    page.locator("#consent").check()
    page.locator("#begin").click()
    state(page, "must show")
    page.wait_for_function("!document.getElementById('begin').disabled", timeout=WAIT_MS)
    page.close()
