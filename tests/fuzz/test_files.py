"""Files that are broken, disguised, endless or no files, wherever a command takes one: 200 of them."""

import pytest

from tests.testing_utils import hostile
from tests.testing_utils.promises import check_command

pytestmark = pytest.mark.usefixtures("loaded_once")
BOX = ("--box", "20,20,70,76")


@pytest.fixture
def talk(whole, tmp_path):
    """Run `talk` with some other file or option."""
    out = tmp_path / "out"
    out.mkdir()

    def run(*extra, image=whole.image, audio=whole.audio, output=out / "out.mp4"):
        model = ("--model", whole.folder / "vasa1", "--steps", "1")
        return check_command(out, "talk", image, audio, "-o", output, *BOX, *model, *extra, output=output)

    return run


@pytest.fixture
def animate(whole, tmp_path):
    """Run `animate` with some driving file."""
    out = tmp_path / "out"
    out.mkdir()

    def run(driving, *extra):
        model = ("--system", "vasa1", "--model", whole.folder / "vasa1")
        words = ("animate", whole.image, driving, "-o", out / "out.mp4", *BOX, *model, *extra)
        return check_command(out, *words, output=out / "out.mp4")

    return run


def held_to(refused, cases):
    """All cases refused, each with the argument's name; tells which were not."""
    wrong = {name: message for name, message in cases.items() if refused not in message}
    assert not wrong, wrong


def test_pictures(talk, tmp_path):
    files = hostile.pictures(tmp_path) | hostile.places(tmp_path)
    held_to("`image`", {name: talk(image=path) for name, path in files.items()})


def test_changed_pictures(talk, tmp_path):
    """Some are refused, some can still be used; never all of one kind."""
    results = [talk(image=path) for path in hostile.changed_pictures(tmp_path, 18).values()]
    assert "" in results and any("`image`" in result for result in results)


def test_sounds(talk, tmp_path):
    files = hostile.sounds(tmp_path) | hostile.places(tmp_path)
    messages = {name: talk(audio=path) for name, path in files.items()}
    assert "`sampling_rate`" in messages.pop("rate 50")
    held_to("`audio`", messages)


def test_changed_sounds(talk, tmp_path):
    results = [talk(audio=path) for path in hostile.changed_sounds(tmp_path, 13).values()]
    assert "" in results and any("`audio`" in result for result in results)


def test_driving_videos(animate, tmp_path):
    files = hostile.videos(tmp_path) | hostile.places(tmp_path)
    held_to("`driving", {name: animate(path, "--driving-box", "20,10,60,70") for name, path in files.items()})


def test_changed_videos(animate, tmp_path):
    files = hostile.changed_videos(tmp_path, 15)
    results = [animate(path, "--driving-box", "20,10,60,70") for path in files.values()]
    assert "" in results and any("`driving_video`" in result for result in results)


def test_videos_to_be_looked_at(tmp_path):
    files = hostile.videos(tmp_path) | hostile.places(tmp_path)
    (tmp_path / "out").mkdir()
    held_to("`video`", {name: check_command(tmp_path / "out", "inspect", path) for name, path in files.items()})


def test_motions(animate, tmp_path):
    messages = {name: animate(path) for name, path in hostile.motions(tmp_path).items()}
    for name, argument in (("rate", "`fps`"), ("channels", "`dynamics`")):
        for case in [case for case in messages if name in case and argument in messages[case]]:
            messages.pop(case)
    held_to("`driving`", messages)


def test_cameras(whole, tmp_path):
    files = hostile.cameras(tmp_path) | hostile.places(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    words = ("talk3d", "tiny", whole.audio, "-o", out / "out.mp4", "--size", "32", "--model", whole.folder / "vasa3d")
    messages = {name: check_command(out, *words, "--camera", path) for name, path in files.items()}
    assert "`seconds`" in messages.pop("before 0")
    held_to("`--camera`", messages)


def test_targets(talk, tmp_path):
    places = hostile.targets(tmp_path)
    assert talk(output=places.pop("loop of links")) == ""  # the link makes room for the video
    held_to("`--output`", {name: talk(output=path) for name, path in places.items()})
