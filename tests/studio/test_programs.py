"""Functions as programs see them: they work as before, under names that tell what is what."""

import inspect

import pytest

from vasa_hf.studio.desk import message
from vasa_hf.studio.programs import file_paths, is_inside, named


def test_arguments_get_names_and_descriptions():
    def work(request, first, *more):
        """Do it."""
        yield request, first, more

    seen = named(work, "do", {"first": "The first.", "gaze yaw": "Where to.", "steps": "How many."})
    assert seen.__name__ == "do"
    assert list(inspect.signature(seen).parameters) == ["request", "first", "gaze_yaw", "steps"]
    assert seen.__doc__.splitlines() == [
        "Do it.",
        "",
        "Args:",
        "    first: The first.",
        "    gaze_yaw: Where to.",
        "    steps: How many.",
    ]
    assert list(seen(1, 2, 3, 4)) == [(1, 2, (3, 4))] and inspect.isgeneratorfunction(seen)


@pytest.mark.parametrize("fields", [None, {"other": "It is not taken."}])
def test_a_function_that_names_all_keeps_its_arguments(fields):
    def add(one, two=2):
        """Add."""
        return one + two

    seen = named(add, "sum", fields)
    assert inspect.signature(seen) == inspect.signature(add) and seen(1, 5) == 6 and seen.__doc__ == "Add."


def test_files_of_a_request_are_found_at_any_depth():
    sent = [True, {"path": "/a"}, [{"path": "/b", "meta": {}}], {"video": {"path": "/c"}}, "/no file", None]
    assert list(file_paths(sent)) == ["/a", "/b", "/c"]


def test_only_what_really_lies_in_a_folder_is_inside(tmp_path):
    inside, other = tmp_path / "in", tmp_path / "inner"
    inside.mkdir()
    (inside / "link").symlink_to(other)
    assert is_inside(inside / "new.png", inside)
    for path in (other / "a", inside / ".." / "inner", inside / "link", "/etc/passwd", "a\0b", "https://a.b/c.png"):
        assert not is_inside(path, inside)


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("`path` must be a file, got '/srv/a b/c.png'.", "path must be a file, got 'c.png'."),
        ('got "/srv/it\'s/c.png": no', "got 'c.png': no"),
        ("Error opening input file /srv/gradio/ab12/a.mp4.", "Error opening input file a.mp4."),
        ("`set` must be 30000/1001 or 1/2", "set must be 30000/1001 or 1/2"),
    ],
)
def test_a_message_shows_no_folders(error, shown):
    assert message(ValueError(error)) == shown
