"""Functions as programs see them: they work as before, under names that tell what is what."""

import inspect

import pytest

from vasa_hf.studio.programs import named


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
