"""What a run was made from: rows, labels, base model, code and versions, noted at the first stage, compared at each."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from glora_search.errors import UserError
from glora_search.files.text import read_json, write_json
from glora_search.metrics.making import own_class
from glora_search.progress import say
from glora_search.recipe.metrics import OwnMetric
from glora_search.run.context import Context
from glora_search.run.folder import ORIGIN, RunFolder
from glora_search.run.making import versions
from glora_search.run.stages import STAGES
from glora_search.tasks import Task
from glora_search.tasks.fingerprints import file_digest

LATER_FILES = ("chat_template*", "generation_config.json", "*.spm", "*.codes")
"""Those that earlier versions did not note."""
MODEL_FILES = (
    *LATER_FILES,
    *("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*", "*.py"),
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json"),
    *("preprocessor_config.json", "processor_config.json"),
)
"""What of a model's folder decides what it computes."""


def check_origin(run: Context) -> None:
    """Compare data, model and code with those that the run was made from; where nothing was made yet, note them.

    Versions that differ are said, and are no error.

    Raises:
        UserError: something differs; the message names it, and what to do.
    """
    path = run.folder / ORIGIN
    noted = origin_of(run.view)
    if noted is None:
        _ = run.space  # what the hub has of the model is on this disk from here on
        write_json(path, {**_fingerprints(run.task, {}), "versions": versions(run.recipe)})
        return
    now = _fingerprints(run.task, noted["model"])
    different = _differences(noted, now, run.task)
    if different:
        raise UserError(
            f"{run.folder}: made from different data, model or code: {'; '.join(different)}. Bring back what it was "
            f"made from, or use another --run-dir. {_advice(different)}To start over here: "
            f"{run.view.command(STAGES['supernet'].command, '--again')}"
        )
    whole = {**noted, **{part: {**now[part], **noted.get(part, {})} for part in ("data", "code")}}
    if whole != noted:  # further rows, another metric: the recipe may have them later
        write_json(path, whole)
    then, these = noted["versions"], versions(run.recipe)
    changed = [f"{name} {then[name]}, now {these[name]}" for name in then if these.get(name, then[name]) != then[name]]
    if changed:
        say(f"note: made with other versions ({'; '.join(changed)}): figures can differ in their last digits")


def origin_of(run: RunFolder) -> dict[str, Any] | None:
    """What is noted of a run's origin; None where nothing was made from it, or an earlier version noted nothing."""
    path = run.path / ORIGIN
    if not path.is_file() or not run.has_begun():
        return None
    found: Any = None
    with contextlib.suppress(UserError):
        found = read_json(path)
    if not isinstance(found, dict) or not {"data", "labels", "model", "versions"} <= found.keys():
        raise UserError(f"{path}: damaged. Bring it back, or remove it: data and model are then noted as they are now")
    return found


def forget_unlabelled(run: RunFolder) -> None:
    """Unlabelled rows may be others: only the finals learn from them."""
    noted = origin_of(run)
    if noted is not None and noted["data"].pop("unlabelled", None) is not None:
        write_json(run.path / ORIGIN, noted)


def _advice(different: Sequence[str]) -> str:
    if not all(text.startswith("data.unlabelled") for text in different):
        return ""
    return "To repeat the finals alone, give the unlabelled rows another file name. "


def differences(noted: dict[str, Any], task: Task) -> list[str]:
    """In which respects a task's data, labels or model are not those that are noted, each in words."""
    return _differences(noted, _fingerprints(task, noted["model"]), task)


def _differences(noted: dict[str, Any], found: dict[str, Any], task: Task) -> list[str]:
    return [
        *_data(noted["data"], {split: rows for split, rows in found["data"].items() if split in noted["data"]}),
        *_labels(noted["labels"], found["labels"]),
        *_model(noted["model"], found["model"], whole=Path(task.model_path).is_dir()),
        *_code(noted.get("code", {}), found["code"]),
    ]


def _fingerprints(task: Task, known: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": task.data.fingerprints(),
        "labels": task.data.labels,
        "model": _model_files(_model_folder(task.model_path), known),
        "code": {name: digest for cls in _classes(task) for name, digest in _own_code(cls).items()},
    }


def _data(noted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    said = []
    for split, now in found.items():
        then = noted[split]
        if then["digest"] != now["digest"]:
            count = now.get("rows")
            counted = count is not None and count != then["rows"]
            said.append(f"data.{split} has " + (f"{count} rows and had {then['rows']}" if counted else "other rows"))
    return said


def _labels(noted: list[str], found: list[str]) -> list[str]:
    return [] if noted == found else [f"the labels are {', '.join(found)} and were {', '.join(noted)}"]


def _model(noted: dict[str, Any], found: dict[str, Any], *, whole: bool) -> list[str]:
    """A folder has to be whole; of a model on the hub, any of its files may be on this disk."""
    said = [f"{name} is another" for name in noted if name in found and noted[name]["digest"] != found[name]["digest"]]
    if whole:
        said += [f"{name} is missing" for name in noted if name not in found]
        later = [name for name in found for pattern in LATER_FILES if fnmatch(name, pattern)]
        said += [f"{name} is new" for name in found if name not in noted and name not in later]
    return [f"task.model: {', '.join(said)}"] if said else []


def _code(noted: dict[str, str], found: dict[str, str]) -> list[str]:
    """Which modules of task and metrics have changed; that a metric has come or gone is the recipe's doing."""
    said = [name for name in noted if name in found and found[name] != noted[name]]
    return [f"task: {', '.join(f'the module {name} has changed' for name in said)}"] if said else []


def _classes(task: Task) -> list[type]:
    """Whose code decides what a score is."""
    metrics = [metric for metric in task.recipe.task.metrics if isinstance(metric, OwnMetric)]
    return [type(task), *(own_class(metric, "task.metrics") for metric in metrics)]


@functools.cache
def _own_code(cls: type) -> dict[str, str]:
    """The modules of a class of the user's own and of its bases, each with its file's digest; not what they import.

    Read once in a process, since a module that is edited later runs as it was imported. Installed packages have
    versions.
    """
    others = {"glora_search", *sys.stdlib_module_names}
    names = dict.fromkeys(base.__module__ for base in cls.__mro__ if base.__module__.split(".")[0] not in others)
    files = {name: Path(getattr(sys.modules.get(name), "__file__", None) or "") for name in names}
    own = {name: file for name, file in files.items() if file.is_file() and "site-packages" not in file.parts}
    return {name: file_digest(file) for name, file in own.items()}


def _model_folder(path: str) -> Path | None:
    """Where a model's files are; None where the hub's are not on this disk."""
    if Path(path).is_dir():
        return Path(path)
    config = try_to_load_from_cache(path, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _model_files(folder: Path | None, known: dict[str, Any]) -> dict[str, Any]:
    """The files that decide what a model computes, each with its digest.

    Reading gigabytes of weights takes seconds: a file that nobody has written since its digest was noted is not read
    again. Nobody can set back ``st_ctime``.
    """
    found: dict[str, Any] = {}
    paths = {path for pattern in MODEL_FILES for path in (folder.glob(pattern) if folder is not None else ())}
    for path in sorted(path for path in paths if path.is_file()):
        stat, real = path.stat(), Path(os.path.realpath(path))
        written = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        before = known.get(path.name, {})
        if real.parent.name == "blobs":  # of the hub's cache, where a file is called by its content
            digest = real.name
        elif before.get("written") == written:
            digest = before["digest"]
        else:
            digest = file_digest(path)
        found[path.name] = {"digest": digest, "written": written}
    return found
