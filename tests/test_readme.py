"""Every code block of README and guides is run or, where a quick test cannot run it, parsed by the real parser.

What runs is in the tier `e2e`: Python blocks in their order, as one session, on the embedded weights and 0.8 s of
speech. Only parsed are:

- `vasa-hf fit`, and `pipe.fit` of the session: minutes; `test_fit_as_the_readme_writes_it` runs it (`pytest -m slow`).
- `vasa-hf view`, `app`: they serve until they are stopped; their own tests look at the pages.
- `vasa-hf bench`: measures for minutes; `eval`, `prepare`, `convert`: need data and checkpoints of the reader's own.
- `vasa-hf push`: writes to the Hub; `tests/test_publish.py` runs it against a stand-in.
- `accelerate launch`, and `talk` with what it trains: hours.
- `demo`, and the two long commands at the top: `.ci/run` takes those from the page and runs them.
"""

import inspect
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from vasa_hf import Vasa3DAvatarPipeline, cli
from vasa_hf.hub import embedded_path
from vasa_hf.media import VideoReader, load_audio, save_wav
from vasa_hf.training.avatar.presets import choose_preset

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "vasa_hf" / "assets"
README = (ROOT / "README.md").read_text()
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/usage.md", "docs/how_it_works.md")}
BLOCKS = [
    block
    for page in PAGES.values()
    for block in re.findall(r"^```(\w*)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
]
PARSED_ONLY = {"train", "assemble", "demo", "fit", "view", "app", "bench", "eval", "prepare", "convert", "push"}
pytestmark = pytest.mark.skipif(
    not (embedded_path("vasa-small") / "face_autoencoder").is_dir(), reason="the embedded weights are not here"
)


def shell_commands():
    """Commands of the bash blocks, one line each, without comments and continuations."""
    lines = "".join(code for language, code in BLOCKS if language == "bash").replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


COMMANDS = shell_commands()
OURS = [words[1:] for words in COMMANDS if words[0] == "vasa-hf"]


def fill(folder):
    """The files that the pages speak of: a portrait, and a voice, 20 frames long."""
    samples, rate = load_audio(ASSETS / "voice.flac")
    assets = folder / "vasa_hf" / "assets"
    assets.mkdir(parents=True)
    for portrait, voice in (("portrait.jpg", "speech.wav"), (assets / "portrait.jpg", assets / "voice.flac")):
        (folder / portrait).write_bytes((ASSETS / "portrait.jpg").read_bytes())
        save_wav(folder / voice, samples[0, : 20 * rate // 25], rate)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The folder after all python blocks have run in it, and their names."""
    folder = tmp_path_factory.mktemp("readme")
    fill(folder)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Vasa3DAvatarPipeline, "fit", ready_made)
        for language, code in BLOCKS:
            if language == "python":
                exec(compile(code, "README.md", "exec"), names)
    return folder, names


def ready_made(pipe, *arguments, **options):
    """In place of minutes of fitting: the call is checked, and an avatar of striped colours comes back."""
    from tests.testing_utils.avatars import make_avatar

    call = inspect.signature(real_fit).bind(pipe, *arguments, **options)
    assert Path(call.arguments["image"]).is_file() and choose_preset(call.arguments["preset"])
    config = pipe.face_autoencoder.config
    return make_avatar(0, pipe.face_autoencoder.motion_dim, config.motion_space)


real_fit = Vasa3DAvatarPipeline.fit


def test_the_page_is_short_and_speaks_known_languages():
    assert len(README.splitlines()) <= 120
    assert {language for language, _ in BLOCKS} == {"python", "bash"}


def test_pictures_are_there_and_light():
    for name, page in PAGES.items():
        pictures = re.findall(r'<img src="([^"]+)"|!\[[^]]+\]\(([^)]+)\)', page)
        assert len(pictures) >= 2 or name == "docs/how_it_works.md"
        assert all("alt=" in tag for tag in re.findall(r"<img [^>]+>", page))
        files = [(ROOT / name).parent / (html or markdown) for html, markdown in pictures]
        assert all(0 < file.stat().st_size < 1_500_000 for file in files)


@pytest.mark.e2e
def test_python_blocks_run(session):
    folder, names = session
    assert len(names["out"].frames) == 20
    assert sorted(path.name for path in folder.glob("me*")) == ["me", "me.ply"]
    assert len(list(VideoReader(folder / "out.mp4"))) == 20


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_commands_parse(words):
    options = cli._build_parser().parse_args(cli._join_values(words))
    assert callable(options.run)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "words", [words for words in OURS if words[0] not in PARSED_ONLY and "motion/pipeline" not in words], ids=" ".join
)
def test_commands_run(words, session, monkeypatch, capsys):
    """In the session's folder, which has `me/`."""
    monkeypatch.chdir(session[0])
    steps = ["--steps", "2"] if words[0] in ("talk", "talk3d") else []
    assert cli.main([*words, *steps]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    for name in [words[place + 1] for place, word in enumerate(words) if word in ("-o", "--preview")]:
        assert Path(name).stat().st_size > 1000 and name in said


@pytest.mark.parametrize(
    "words",
    [words for words in COMMANDS if words[0] in ("accelerate", "python")],
    ids=lambda words: " ".join(words[3:5]),
)
def test_trainings_have_these_options(words, monkeypatch, capsys):
    rest = words[2:] if words[0] == "accelerate" else words[1:]
    if rest[0] != "-m":
        assert (ROOT / rest[0]).is_file()
        return
    recipe = [word for word in rest[2:3] if not word.startswith("-")]
    monkeypatch.setattr(sys, "argv", [rest[1], *recipe, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(rest[1], run_name="__main__")
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(re.search(rf"(?<![\w-]){word}(?![\w-])", said) for word in rest if word.startswith("--")), said


def test_no_command_is_left_out():
    known = {"vasa-hf", "accelerate", "python"}
    left = [words for words in COMMANDS if words[0] not in known and words[:3] != ["python3", "-m", "venv"]]
    assert not left, "teach this file to run or to parse it"
    assert sum(words[0] == "python3" for words in COMMANDS) == 2
    assert {words[0] for words in OURS} >= {"talk", "talk3d", "fit", "view", "push", "eval", "bench"}


@pytest.mark.slow
def test_fit_as_the_readme_writes_it(tmp_path, monkeypatch):
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    (words,) = [words for words in OURS if words[0] == "fit"]
    assert cli.main(words) == 0
    pipe = Vasa3DAvatarPipeline.from_pretrained("vasa3d-small")
    likeness = torch.from_numpy(pixels(pipe.contact_sheet("me", [0]))).float()
    assert likeness.std() > 20, "a person, not a blank image"


def pixels(picture):
    import numpy as np

    return np.asarray(picture).copy()
