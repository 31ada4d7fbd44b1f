"""The page where others run it: as MCP tools, as a Space that lends GPUs."""

import asyncio
import base64
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio_client import Client, handle_file

from vasa_hf.media import read_video

from .conftest import serving
from .test_api import SETTINGS

pytestmark = pytest.mark.e2e

# A Space's package: it lends a GPU, here only a line in a file, to calls of what it decorates.
SPACES = """
import functools, inspect, os

def GPU(function=None, duration=60):
    def lend(function):
        def note(what):
            with open(os.environ["LOANS"], "a") as file:
                file.write(f"{function.__name__} {duration} {what}\\n")

        note("decorated")

        @functools.wraps(function)
        def generator(*arguments):
            note(f"lent {arguments[0].__name__}")
            yield from function(*arguments)

        @functools.wraps(function)
        def plain(*arguments):
            note(f"lent {arguments[0].__name__}")
            return function(*arguments)

        return generator if inspect.isgeneratorfunction(function) else plain

    return lend if function is None else lend(function)
"""


def data_url(path, kind):
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def test_mcp_tools_are_told_apart_and_make_a_video(tmp_path, portrait, voices):
    pytest.importorskip("mcp", reason="needs pip install 'vasa-hf[mcp]'")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    messages = []

    async def told(progress, total, message):
        messages.append(message)

    async def use(url):
        async with streamable_http_client(url) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            asked = {
                "image": data_url(portrait, "image/jpeg"),
                "audio": data_url(voices(1), "audio/wav"),
                "steps": 4,
                "seed": 7,
            }
            refused = await session.call_tool("talk", {**asked, "consent": False})
            given = {**asked, "consent": True, "gaze_yaw_deg": 10}
            made = await session.call_tool("talk", given, progress_callback=told)
            return tools, refused, made, await session.call_tool("look", {"name": "mara", "azimuth": 20})

    with serving(tmp_path, "--mcp") as served:
        # In a thread of its own: the browser of the tests before has an event loop in this one.
        with ThreadPoolExecutor(1) as pool:
            tools, refused, made, seen = pool.submit(asyncio.run, use(f"{served.url}/gradio_api/mcp/")).result()
        assert {"talk", "faces", "speak", "look", "export", "shape", "verdict"} <= tools.keys()
        fields = tools["talk"].inputSchema["properties"]
        assert "agreed" in fields["consent"]["description"] and fields["gaze_yaw_deg"]["type"] == "number"
        assert not [field for tool in tools.values() for field in tool.inputSchema["properties"] if "param" in field]
        assert refused.isError and "agreed" in refused.content[0].text
        assert not made.isError, made
        video, settings = (part.text.split("/gradio_api/file=")[1] for part in made.content)
        about = json.loads(Path(settings).read_text())["settings"]
        assert about["seed"] == 7 and about["steps"] == 4 and about["gaze_yaw_deg"] == 10
        assert len(list(read_video(video))) == 25 and "Processing" in messages
        assert not seen.isError and any(part.type == "image" for part in seen.content)


def test_a_space_lends_its_gpu_to_the_work_alone(tmp_path, portrait, voices):
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "spaces.py").write_text(SPACES)
    path = os.pathsep.join(filter(None, (str(tmp_path / "with"), os.environ.get("PYTHONPATH"))))
    loans = tmp_path / "loans"
    with serving(tmp_path, PYTHONPATH=path, LOANS=str(loans)) as served:
        assert sorted(loans.read_text().splitlines()) == ["run_job 120 decorated", "run_short 20 decorated"]
        client = Client(served.url, verbose=False)
        video, _ = client.predict(
            True, handle_file(portrait), handle_file(voices(1)), None, *SETTINGS, api_name="/talk"
        )
        assert len(list(read_video(video["video"] if isinstance(video, dict) else video))) == 25
        client.predict("mara", 20, 0, "white", api_name="/look")
        ply, splat = client.predict("mara", api_name="/export")
        assert ply.endswith(".ply") and splat.endswith(".splat")
        with pytest.raises(Exception, match="avatar first"):
            client.predict("mine (fitted here)", 0, 0, "white", api_name="/look")
    lent = [line.split(" ", 2) for line in loans.read_text().splitlines() if " lent " in line]
    assert [(name, what) for name, _, what in lent] == [
        ("run_job", "lent make_talk"),
        ("run_short", "lent render_avatar"),
        ("run_short", "lent export_avatar"),
    ]


def test_mcp_without_its_package_is_told_at_once(tmp_path):
    hide = "u.find_spec = lambda name, *rest: None if name == 'mcp' else find(name, *rest)"
    lines = ("import importlib.util as u", "find = u.find_spec", hide)
    (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
    with (
        pytest.raises(AssertionError, match=r"pip install 'vasa-hf\[mcp\]'"),
        serving(tmp_path, "--mcp", PYTHONPATH=str(tmp_path)),
    ):
        pass
