"""The videos of `prepare_job` on a Ray cluster: `pip install "vasa_hf[ray]"`, `vasa-hf prepare --engine ray`.

Each worker holds the networks and prepares video after video. What it makes goes to the output folder, which all
machines must see under the same path (NFS, Lustre, a mounted bucket); only the video's key goes through Ray. The
process that started the job packs the shards in the order of the keys: they have the same bytes as those of one
process. A cluster is joined by `RAY_ADDRESS`; without it, Ray starts on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vasa_hf.data.prepare import PrepareSettings, Source, VideoPreparer, prepare_part


class _Worker:
    """Ray's actor: prepares the video of a row."""

    def __init__(self, settings: PrepareSettings, parts: Path):
        self.preparer, self.parts = VideoPreparer(settings), parts

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        return {"key": prepare_part(self.preparer, Source(**row), self.parts)}


def run_with_ray(todo: list[Source], settings: PrepareSettings, parts: Path, workers: int) -> Iterator[str]:
    """Prepare videos with Ray Data, as they come.

    Args:
        todo (`list[Source]`): The videos.
        settings (`PrepareSettings`): How.
        parts (`Path`): Folder for clips and reports.
        workers (`int`): Actors, one core each.

    Yields:
        `str`: key of each finished video.

    Raises:
        ImportError: If Ray is not installed.
    """
    if not todo:
        return
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError('`engine` "ray" needs Ray: pip install "vasa_hf[ray]"') from error
    started = not ray.is_initialized()
    if started:
        # On this machine as many workers as were asked for; a cluster knows its own cores.
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers + 1}
        ray.init(log_to_driver=False, include_dashboard=False, **here)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{**asdict(source), "path": str(Path(source.path).absolute())} for source in todo]
        # Small blocks, so that a long video holds up few others.
        data = ray.data.from_items(rows, override_num_blocks=min(len(rows), 64 * workers))
        data = data.map(
            _Worker,
            fn_constructor_args=(settings, parts.absolute()),
            concurrency=min(workers, len(todo)),
            num_cpus=1,
        )
        for row in data.iter_rows():
            yield row["key"]
    finally:
        if started:
            ray.shutdown()
