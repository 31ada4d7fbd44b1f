"""A user study as a web page without a server: blinded scores of single videos and choices between systems.

Source: VASA-3D §4.2 and appendix B, Fig. B. Videos are shown one at a time in random order, muted, and get a score of 1
to 5 for their visual quality; then all systems side by side in random order, and the participant selects the most
realistic one. The page does not know the systems: `key.json` does, and stays with whoever runs the study. Answers are
kept in the browser and saved as CSV.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vasa_hf.files import staging_folder

COLUMNS = ("participant", "kind", "item", "video", "answer")
KEY = "key.json"

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Study of talking heads</title>
<style>
body { font: 1rem/1.5 sans-serif; max-width: 70rem; margin: 1rem auto; padding: 0 1rem }
video { width: 100%; background: #000 } .row { display: flex; flex-wrap: wrap; gap: 1rem }
.row > label { flex: 1 1 12rem; text-align: center } .one { max-width: 32rem }
input[type=range] { width: 100% } button { font: inherit; padding: .4rem 1rem }
</style>
<h1>Study of talking heads</h1>
<p id="where" role="status"></p><main></main>
<p><button id="next">Next</button> <button id="save" hidden>Save my answers</button></p>
<script>
const tasks = TASKS, study = STUDY, main = document.querySelector("main");
const state = JSON.parse(localStorage.getItem(study) || "null")
  || { who: Math.random().toString(36).slice(2, 10), at: 0, order: null, answers: [] };
const shuffle = list => list.map(x => [Math.random(), x]).sort((a, b) => a[0] - b[0]).map(x => x[1]);
// Scores first, then choices, as a choice tells which videos belong together; both in an order of one's own.
if (!state.order) state.order = [...shuffle(tasks.scores.map((t, i) => ["score", i])),
  ...shuffle(tasks.choices.map((t, i) => ["choice", i]))];
const keep = () => localStorage.setItem(study, JSON.stringify(state));
let read = null;
function show() {
  const button = document.getElementById("next"), done = state.at >= state.order.length;
  button.hidden = done; document.getElementById("save").hidden = !done;
  document.getElementById("where").textContent = done ? "Thank you. Please save your answers and send the file."
    : `${state.at + 1} of ${state.order.length}`;
  main.replaceChildren(); if (done) return;
  const [kind, index] = state.order[state.at];
  if (kind === "score") {
    const task = tasks.scores[index];
    main.innerHTML = `<div class="one"><video src="${task.video}" controls muted autoplay loop playsinline></video>
      <label>How good does it look? 1: bad, 5: excellent <input type="range" min="1" max="5" step="1" value="3"
      aria-valuetext="3"></label><output>3</output></div>`;
    const slider = main.querySelector("input");
    main.querySelector("video").addEventListener("volumechange", e => { e.target.muted = true; });
    let moved = false; button.disabled = true;
    slider.addEventListener("input", () => { moved = true; button.disabled = false;
      main.querySelector("output").textContent = slider.value; slider.setAttribute("aria-valuetext", slider.value); });
    slider.addEventListener("click", () => slider.dispatchEvent(new Event("input")));
    read = () => moved && [{ kind, item: task.item, video: task.video, answer: slider.value }];
  } else {
    const task = tasks.choices[index], videos = shuffle(task.videos);
    main.innerHTML = "<p>Which one looks the most realistic, with its audio?</p><div class='row'>" + videos.map(v =>
      `<label><video src="${v}" controls loop playsinline></video>
      <input type="radio" name="best" value="${v}"> this one</label>`).join("") + "</div>";
    button.disabled = true;
    main.addEventListener("change", () => { button.disabled = false; }, { once: true });
    read = () => { const best = main.querySelector("input:checked");
      return best && videos.map(v => ({ kind, item: task.item, video: v, answer: v === best.value ? 1 : 0 })); };
  }
}
document.getElementById("next").addEventListener("click", () => {
  const answers = read(); if (!answers) return;
  state.answers.push(...answers); state.at += 1; keep(); show();
});
document.getElementById("save").addEventListener("click", () => {
  const rows = [["participant", "kind", "item", "video", "answer"],
    ...state.answers.map(a => [state.who, a.kind, a.item, a.video, a.answer])];
  const link = document.createElement("a");
  const text = rows.map(r => r.join(",") + "\\r\\n").join("");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = `answers-${state.who}.csv`; link.click();
});
keep(); show();
</script></html>
"""


def make_study(systems: Mapping[str, str | os.PathLike], output: str | os.PathLike, seed: int | None = None) -> int:
    """Write the page, its videos under random names, and the key.

    Args:
        systems (`Mapping[str, str]`): Name of each system -> folder of its videos; videos of one name are compared.
        output (`str` or `os.PathLike`): New folder: `page/` to give to participants, and `key.json` to keep.
        seed (`int`, *optional*): Of the random names.

    Returns:
        `int`: How many items are compared.

    Raises:
        ValueError: If there are fewer than two systems, or no video that all of them have.
    """
    if len(systems) < 2:
        raise ValueError(f"`systems` must be two or more, NAME=FOLDER each, got {list(systems)}.")
    folders = {name: Path(folder) for name, folder in systems.items()}
    for name, folder in folders.items():
        if not folder.is_dir():
            raise ValueError(f"`systems` must be existing folders, {name} has {str(folder)!r}.")
    items = sorted(set.intersection(*({path.stem for path in folder.glob("*.mp4")} for folder in folders.values())))
    if not items:
        raise ValueError("`systems` must have videos (.mp4) of the same names, the folders share none.")
    if Path(output).exists():
        raise ValueError(f"`output` must be a new folder, {os.fspath(output)!r} exists.")
    rng, key = random.Random(seed), {}
    tasks: dict[str, list[Any]] = {"scores": [], "choices": []}
    pairs = [(item, name) for item in items for name in folders]
    rng.shuffle(pairs)
    numbers = {item: f"item{place + 1}" for place, item in enumerate(rng.sample(items, len(items)))}
    names = {pair: f"{rng.getrandbits(48):012x}.mp4" for pair in pairs}
    Path(output).absolute().parent.mkdir(parents=True, exist_ok=True)
    with staging_folder(Path(output).absolute()) as folder:
        (folder / "page").mkdir()
        for item, system in pairs:
            video = names[item, system]
            shutil.copyfile(folders[system] / f"{item}.mp4", folder / "page" / video)
            key[video] = {"system": system, "item": item}
            tasks["scores"].append({"item": numbers[item], "video": video})
        for item in items:
            videos = rng.sample([names[item, system] for system in folders], len(folders))
            tasks["choices"].append({"item": numbers[item], "videos": videos})
        study = f"study-{rng.getrandbits(32):08x}"
        page = _PAGE.replace("TASKS", json.dumps(tasks)).replace("STUDY", json.dumps(study))
        (folder / "page" / "index.html").write_text(page, encoding="utf-8")
        (folder / KEY).write_text(json.dumps(key, indent=1), encoding="utf-8")
    return len(items)


def score_study(study: str | os.PathLike, answers: Sequence[str | os.PathLike]) -> list[dict[str, Any]]:
    """Average the answers of all participants.

    Args:
        study (`str` or `os.PathLike`): Folder of `make_study`.
        answers (`Sequence`): CSV files that participants saved.

    Returns:
        `list[dict]`: `system`, `quality` (mean score, 1 to 5), `preference` (share of choices), `participants`.

    Raises:
        ValueError: If a file is no such table, or of another study.
    """
    path = Path(study) / KEY
    if not path.is_file():
        raise ValueError(f"`study` must be a folder with {KEY}, got {os.fspath(study)!r}.")
    key = json.loads(path.read_text())
    kinds: dict[str, dict[str, list[float]]] = {"score": defaultdict(list), "choice": defaultdict(list)}
    people = defaultdict(set)
    for file in answers:
        with open(file, newline="", encoding="utf-8-sig") as table:
            for row in csv.DictReader(table):
                if set(row) != set(COLUMNS) or row["kind"] not in kinds or row["video"] not in key:
                    raise ValueError(f"`answers` must be saved by the page of this study, {os.fspath(file)!r} is not.")
                system = key[row["video"]]["system"]
                kinds[row["kind"]][system].append(float(row["answer"]))
                people[system].add(row["participant"])
    mean = lambda values: sum(values) / len(values) if values else None  # noqa: E731
    systems = list(dict.fromkeys(entry["system"] for entry in key.values()))
    return [
        {
            "system": system,
            "quality": mean(kinds["score"][system]),
            "preference": mean(kinds["choice"][system]),
            "participants": len(people[system]),
        }
        for system in sorted(systems)
    ]
