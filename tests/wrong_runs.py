"""Wrong run folders, orders of the stages, options and storages."""

from __future__ import annotations

import json

from wrong_world import (
    NO_CSV,
    NO_MODEL,
    NO_RUN,
    ROWS,
    SHIPPED,
    after,
    arguments,
    below_a_file,
    broken_journal,
    file_for_folder,
    other_folder,
    other_recipe,
    saved_data,
    space,
)

ORIGIN = json.dumps(
    {
        "data": {split: {"rows": 63, "digest": "another"} for split in ("train", "validation", "test")},
        "labels": ["tech"],
        "model": {},
        "versions": {},
    }
).encode()

WRONG = {
    # run folders
    "a run that is not there": (arguments("search", "nowhere"), NO_RUN, ["run", "nowhere"]),
    "a folder that is no run": (lambda world: [world.run() and "merge", "."], NO_RUN, ["run", "'.'"]),
    "a folder of something else": (other_folder, "a new or empty folder, or a run folder", ["run-dir"]),
    "a file for a folder": (file_for_folder, "a folder, not a file", ["run-dir"]),
    "a folder below a file": (below_a_file, "Not a directory", ["notes.txt"]),
    "a folder of another recipe": (other_recipe, "was made from another recipe", ["seed is 7 here and was 0"]),
    "a folder of another space": (
        lambda world: [world.finished()] and space("paths: {B: [lora, none]}\nranks: [7]")(world),
        "was made from another space", ["ranks is [7] here"],
    ),
    "a folder of other rows": (
        after("search", "run", search__stage_json=None, origin_json=ORIGIN), "made from different data, model or code",
        ["data.train has 64 rows and had 63", "the labels are sports, tech and were tech", "config.json is new",
         "glora-search train-supernet run --again"],
    ),
    "another stage again, of a folder of other rows": (
        after("merge", "run", "--again", origin_json=ORIGIN), "made from different data, model or code", ["data.test"],
    ),
    "an export of a folder of other rows": (
        after("export", "run", "--format", "lora", origin_json=ORIGIN), "made from different data, model or code", [],
    ),
    "a note of what a run was made from that says nothing": (
        after("search", "run", search__stage_json=None, origin_json=b"{}"), "origin.json: damaged", ["Bring it back"],
    ),
    "a broken note of what a run was made from": (
        after("search", "run", search__stage_json=None, origin_json=b"{"), "origin.json: damaged", ["remove it"],
    ),
    "a run folder's broken recipe": (after("search", "run", **{"recipe.yaml": b"a: ["}), "not valid YAML", ["recipe"]),
    "a stage's broken result": (
        after("search", "run", search__stage_json=None, supernet__stage_json=b"{"), "not valid JSON", ["stage.json"],
    ),
    "a stage's result that is a list": (
        after("search", "run", search__stage_json=b"[]"), "; remove it to repeat the stage",
        ["search/stage.json: not what search writes"],
    ),
    "a result that says nothing, looked at": (
        after("status", "run", search__stage_json=b"{}"), "; remove it to repeat the stage", ["search/stage.json"],
    ),
    "a last result that says nothing": (
        after("report", "run", metrics_json=b"{}"), "; remove it to repeat the stage", ["run/metrics.json", "evaluate"],
    ),
    "a comparison with a last result that says nothing": (
        after("compare", "run", metrics_json=b"{}"), "; remove it to repeat the stage", ["run/metrics.json"],
    ),
    "a table of trials that somebody has changed": (
        after("report", "run", **{"search/trials.csv": b"a,b\n1,2\n"}), "not as the search has written it",
        ["search/trials.csv", "remove run/search/stage.json", "glora-search search run"],
    ),
    "a journal of other lines": (
        after("search", "run", search__stage_json=None, **{"search/journal.log": b"{}\n"}),
        "a new file, or a journal", ["journal.log"],
    ),
    "an adapter of no kind": (
        after("merge", "run", retrained=None, merged=None, **{"best/adapter_config.json": b"{}"}),
        "not a complete adapter", ["run/best", "--again"],
    ),
    "a merged model of no kind, read": (
        after("evaluate", "run", metrics_json=None, **{"merged/config.json": b"{}"}), "cannot be used",
        ["run/merged", "glora-search merge run --again"],
    ),
    "a broken result, looked at": (after("status", "run", merged__stage_json=b""), "not valid JSON", ["stage.json"]),
    "a supernet without weights": (
        after("export", "run", best__stage_json=None, **{"supernet/adapter_model.safetensors": None}),
        "not a complete adapter", ["supernet", "--again"],
    ),
    "a supernet whose weights are cut off": (
        after("export", "run", best__stage_json=None, **{"supernet/adapter_model.safetensors": b"\x00" * 50}),
        "not a complete adapter", ["supernet", "--again"],
    ),
    "a journal with a damaged line": (broken_journal, "is damaged", ["journal.log", "line 5"]),
    # order
    "search before the supernet": (
        after("search", "run", supernet=None, search=None), "run first: glora-search", ["train-supernet run"],
    ),
    "export before the search": (
        after("export", "run", search=None, best=None), "run first: glora-search", ["glora-search search run"],
    ),
    "retrain before the export": (
        after("retrain", "run", best=None, retrained=None), "run first: glora-search", ["glora-search export run"],
    ),
    "merge before the export": (
        after("merge", "run", best=None, merged=None), "run first: glora-search", ["glora-search export run"],
    ),
    "evaluate before the merge": (
        after("evaluate", "run", merged=None, metrics_json=None), "run first: glora-search", ["glora-search merge run"],
    ),
    "predict before the merge": (
        after("predict", "run", "a goal", merged=None), "run first: glora-search", ["glora-search merge run"],
    ),
    "the dashboard before the search": (
        after("dashboard", "run", search=None), "run first: glora-search", ["glora-search search run"],
    ),
    # options
    "an unknown command": (arguments("serach", "run"), "No such command", ["serach"]),
    "an unknown option": (arguments("search", "run", "--worker", "2"), "No such option", ["--worker"]),
    "no run": (arguments("search"), "Missing argument", ["RUN", "glora-search search --help"]),
    "no workers": (arguments("search", "run", "--workers", "0"), "--workers: got 0; allowed: 1 or more", []),
    "no trials to go on to": (
        after("search", "run", "--trials", "0"), "--trials: got 0; allowed: 1 or more", [],
    ),
    "a word for workers": (arguments("search", "run", "--workers", "two"), "Invalid value for", ["--workers", "two"]),
    "an unknown format": (after("export", "run", "--format", "onnx"), "--format: got", ["onnx", "peft", "lora"]),
    "--pad for what is no LoRA": (
        after("export", "run", "--format", "peft", "--pad"), "lora with --pad", ["--format", "peft"],
    ),
    "--again for what is always new": (
        after("export", "run", "--format", "peft", "--again"), "which is always written anew", ["--again", "peft"],
    ),
    # storages
    "an unknown storage": (
        after("search", "run", "--storage", "ftp://host/x", search=None), "the file of a journal, or a URL",
        ["storage", "ftp", "postgresql://"],
    ),
    "a server that is not there": (
        after("search", "run", "--storage", "postgresql://me:secret@127.0.0.1:1/x", search=None),
        "a storage that can be reached", ["storage", "127.0.0.1"],
    ),
    "a database in no folder": (
        after("search", "run", "--storage", "sqlite:///none/x.db", search=None),
        "a storage that can be reached", ["storage", "sqlite"],
    ),
    "a shared search that has not begun": (
        after("status", "run", "--storage", "sqlite:///:memory:"), "has not begun in this storage", ["run"],
    ),
    "a storage for a search that is here": (
        after("search", "run", "--storage", "sqlite:///x.db", search__stage_json=None),
        "the trials of its search are in this folder", ["search run,", "search run --again --storage STORAGE"],
    ),
    # looking at runs
    "the status of no run": (arguments("status", "nowhere"), NO_RUN, ["nowhere"]),
    "a comparison with no run": (after("compare", "run", "nowhere"), NO_RUN, ["nowhere"]),
    "a comparison with another recipe.yaml": (
        after("compare", "run", **{"recipe.yaml": b"name: soup"}),
        "this is not a run folder's recipe", ["run/recipe.yaml", "task: missing"],
    ),
    "nothing to predict": (after("predict", "run"), "at least one text", ["TEXT"]),
    "texts that are not there": (after("predict", "run", "--file", "none.txt"), "a text file in UTF-8", ["none.txt"]),
    "texts in another encoding": (
        lambda world: [*after("predict", "run")(world), "--file", world.write("own.txt", b"\xff\xfe\x81")],
        "a text file in UTF-8", ["own.txt"],
    ),
    "a column that no model reads": (
        after("predict", "run", "--set", "texd=a goal"), "COLUMN=TEXT, with a column", ["texd=a goal", ": text"],
    ),
    "rows without the text": (
        lambda world: [*after("predict", "run")(world), "--file", world.write("rows.jsonl", '{"review": "goal"}')],
        "a row: got", ["review", "the columns text"],
    ),
    "rows that end in text": (
        lambda world: [*after("predict", "run")(world), "--file", world.write("rows.jsonl", '{"text": "goal"}\nmore')],
        "json lines, each an object", ["line 2"],
    ),
    "a merged model that is cut off": (
        after("predict", "run", "a goal", **{"merged/model.safetensors": b"\x00" * 50}), "cannot be used", ["merged"],
    ),
    # beginning
    "a recipe over another file": (
        lambda world: ["init", world.write("own.yaml", "mine")], "--force replaces it", ["FILE", "own.yaml"],
    ),
    "a recipe into no folder": (arguments("init", "none/own.yaml"), "a file in a folder that exists", ["none/"]),
    "a recipe for a damaged file": (
        lambda world: ["init", "own.yaml", "--train", world.write("own.csv", b"\xff\xfe")], NO_CSV, ["--train"],
    ),
    "a recipe for an empty file": (
        lambda world: ["init", "own.yaml", "--train", world.write("own.csv", "")],
        "data whose columns say what is learned", ["it has no rows"],
    ),
    "a recipe for a missing column": (
        lambda world: ["init", "own.yaml", "--train", world.write("own.csv", ROWS), "--label-column", "stars"],
        "a column of", ["--label-column", "stars", "text, label"],
    ),
    "a recipe for columns that say nothing": (
        lambda world: ["init", "own.yaml", "--train", world.write("own.csv", "a,b\nx,y\n")],
        "data whose columns say what is learned", ["--train", "it has a, b", "--text-column"],
    ),
    "a recipe for a column of nothing": (
        arguments("init", "own.yaml", "--label-column", "stars"), "nothing without --train", ["--label-column"],
    ),
    "a recipe for splits of two formats": (
        lambda world: ["init", "x.yaml", "--train", world.write("a.csv", ROWS), "--test", world.write("b.json", "[]")],
        "as --train is", ["--test", "b.json"],
    ),
    "a recipe for a split of a saved data set": (
        saved_data("init", "own.yaml", "--train", "saved", "--test", "more"),
        "has its own splits", ["--test"],
    ),
    "a recipe for no data": (
        arguments("init", "own.yaml", "--train", "none"),
        "a csv, tsv, json, jsonl or parquet file", ["--train", "none"],
    ),
    "a recipe for no model": (arguments("init", "--model", "./none"), "a folder that exists", ["--model", "./none"]),
    "a recipe for a folder without a model": (
        lambda world: [world.write("model/notes.txt", "") and "init", "--model", "model"], NO_MODEL, ["config.json"],
    ),
    "a recipe for no space": (arguments("init", "--space", "nothing"), SHIPPED, ["--space", "nothing", "glora-paper"]),
    "a recipe for a negative budget": (
        arguments("init", "--budget", "-3"), "allowed: greater than or equal to", ["search.max_params", "-3"],
    ),
    "a space to show that is none": (arguments("spaces", "show", "nothing"), SHIPPED, ["nothing", "glora-ranks"]),
    "a space for no model": (
        arguments("spaces", "show", "glora", "--model", "owner/none"), NO_MODEL, ["--model", "owner/none"],
    ),
}  # fmt: skip
"""What is done -> (what prepares it and gives the command, the part of the message that docs/errors.md explains, more
words of the message)."""
