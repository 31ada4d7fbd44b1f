"""Functions for programs, files that a request may open, and the words of errors."""

import inspect

import pytest

from vasa_hf.demo.files import find_paths, is_inside
from vasa_hf.demo.handler import FieldError, explain_error, report_error
from vasa_hf.demo.jobs import Update
from vasa_hf.demo.widgets import describe_function, show_status


def test_arguments_get_names_and_descriptions():
    def work(request, first, *more):
        """Do it."""
        yield request, first, more

    seen = describe_function(work, "do", {"first": "The first.", "gaze yaw": "Where to.", "steps": "How many."})
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

    seen = describe_function(add, "sum", fields)
    assert inspect.signature(seen) == inspect.signature(add) and seen(1, 5) == 6 and seen.__doc__ == "Add."


def test_files_of_a_request_are_found_at_any_depth():
    sent = [True, {"path": "/a"}, [{"path": "/b", "meta": {}}], {"video": {"path": "/c"}}, "/no file", None]
    assert list(find_paths(sent)) == ["/a", "/b", "/c"]


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
    assert explain_error(ValueError(error)) == shown


def test_an_error_has_the_label_of_the_page_or_the_name_of_the_argument():
    error = ValueError("`image` must show a face, and `box` lie in it.")
    assert explain_error(error) == "“Portrait” must show a face, and box lie in it."
    assert explain_error(error, labels=False) == "image must show a face, and box lie in it."


def test_an_unexpected_error_shows_nothing_of_itself(caplog):
    assert "secret" not in explain_error(RuntimeError("secret"))
    assert "secret" in caplog.text


def test_a_status_is_read_aloud_and_an_error_names_its_field():
    assert 'role="status"' in show_status(Update("Fitting", 3, 10, 7.4))
    assert "Fitting: 3 of 10, about 7 s left" in show_status(Update("Fitting", 3, 10, 7.4))
    shown = show_status(report_error(FieldError("Please add <a voice>.", "voice")))
    assert 'role="alert"' in shown and 'data-field="voice"' in shown and "&lt;a voice&gt;" in shown
    assert "progress" not in shown
