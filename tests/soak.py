"""Many users at once: requests that end, that are cut off, and that are wrong; memory, processes and files after them.

python -m tests.soak                       # 10 users, 200 requests
python -m tests.soak --requests 40         # what the tests run
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.testing_utils import hostile
from tests.testing_utils.page_server import PORTRAIT, SETTINGS, save_page_model, serving_page


def soak(folder, users=10, requests=200, warm_up=100, seed=0):
    """Let users ask the page, each in its own thread.

    Args:
        folder: For the model and the server's files.
        users: How many ask at once.
        requests: Requests of all of them.
        warm_up: Requests before the memory is measured for the first time: what is loaded and kept is no growth.
        seed: Of what is asked.

    Returns:
        `dict`: counts by kind of request and answer, memory before and after in MiB, and what is left over.
    """
    folder = Path(folder)
    save_page_model(folder / "model")
    (folder / "voice.wav").write_bytes(hostile.whole_sound(1.0))
    (folder / "long.wav").write_bytes(hostile.whole_sound(20.0))
    (folder / "text.wav").write_text("no sound")
    with serving_page(folder / "server", folder / "model", "--private") as server:
        _round(server, folder, users, warm_up, random.Random(seed))
        left = server.wait_until_idle()
        time.sleep(2)
        before, began = server.memory(), time.monotonic()
        counts = _round(server, folder, users, requests, random.Random(seed + 1))
        left = server.wait_until_idle()
        time.sleep(2)
        result = {
            "users": users,
            "requests": requests,
            "answers": counts,
            "seconds": round(time.monotonic() - began),
            "memory_mib": [round(before / 2**20), round(server.memory() / 2**20)],
            "jobs": [path.name for path in left[0]],
            "processes": left[1],
            "ended": server.process.poll(),
            "faults": (folder / "server" / "log").read_text().count("Traceback"),
        }
    files = [path for path in (folder / "server").rglob("*") if path.is_file() and path.name != "log"]
    result["files"] = [path.name for path in files]
    return result


def _round(server, folder, users, requests, rng):
    todo, counts, lock = [rng.choice(KINDS) for _ in range(requests)], {}, threading.Lock()

    def user():
        while True:
            with lock:
                if not todo:
                    return
                kind = todo.pop()
            try:
                answer = kind(server, folder)
            except OSError as error:  # the queue is full: told, and tried no more
                answer = type(error).__name__
            with lock:
                name = f"{kind.__name__}: {answer}"
                counts[name] = counts.get(name, 0) + 1

    threads = [threading.Thread(target=user) for _ in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(sorted(counts.items()))


def talk(server, folder):
    return server.ask("talk", True, server.upload(PORTRAIT), server.upload(folder / "voice.wav"), 0, *SETTINGS)[0]


def wrong_sound(server, folder):
    return server.ask("talk", True, server.upload(PORTRAIT), server.upload(folder / "text.wav"), 0, *SETTINGS)[0]


def faces(server, folder):
    return server.ask("faces", True, server.upload(PORTRAIT))[0]


def look(server, folder):
    return server.ask("look", "tiny", 10, 0, "white")[0]


def export(server, folder):
    return server.ask("export", "tiny")[0]


def cut_off(server, folder):
    """Leave in the middle of a long video."""
    data = (True, server.upload(PORTRAIT), server.upload(folder / "long.wav"), 0, *SETTINGS)
    with server.watch("talk", *data) as connection:
        connection.settimeout(1.0)
        try:
            connection.recv(100_000)
            connection.recv(100_000)  # nothing yet: the video is long
        except TimeoutError:
            pass
    return "left"


def leave_at_once(server, folder):
    """Ask and never listen."""
    server.begin("faces", True, server.upload(PORTRAIT))
    return "left"


KINDS = (talk, talk, faces, look, export, cut_off, cut_off, leave_at_once, wrong_sound)


GOOD = {f"{kind.__name__}: complete" for kind in (talk, faces, look, export)}
GOOD |= {"cut_off: left", "leave_at_once: left", "wrong_sound: error"}


def is_good(result):
    """Whether all requests were answered as they must be, memory stayed within a tenth, and nothing is left."""
    before, after = result["memory_mib"]
    left = (result["jobs"], result["processes"], result["files"], result["faults"], result["ended"])
    return not any(left) and after <= 1.1 * before and result["answers"].keys() <= GOOD


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=100, help="requests before memory is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(folder, options.users, options.requests, options.warm_up)
    print(json.dumps(result, indent=1))
    return not is_good(result)


if __name__ == "__main__":
    sys.exit(main())
