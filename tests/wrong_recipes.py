"""Wrong recipes, spaces, data and models."""

from __future__ import annotations

import json

from wrong_world import (
    NO_CSV,
    NO_MODEL,
    ROWS,
    SHIPPED,
    adapter_for_model,
    arguments,
    broken_model,
    changed_model,
    csv,
    more_layers,
    no_numbers,
    no_words,
    recipe_text,
    setting,
    space,
    without_model,
    without_tokenizer,
)

LISTS = "\n".join(json.dumps({"text": [f"a goal {row}"], "label": "xy"[row % 2]}) for row in range(40))
MAPPINGS = "\n".join(json.dumps({"text": f"a goal {row}", "label": {"is": "xy"[row % 2]}}) for row in range(40))
MULTI_HOT = "\n".join(json.dumps({"text": f"a goal {row}", "label": [1, 0, row % 2]}) for row in range(40))

WRONG = {
    # recipes
    "a recipe that is not there": (arguments("run", "nothing.yaml"), SHIPPED, ["recipe", "nothing.yaml", "quickstart"]),
    "a folder for a recipe": (arguments("run", "."), SHIPPED, ["recipe", "'.'"]),
    "no recipe's name": (arguments("run", ""), SHIPPED, ["recipe"]),
    "a recipe with broken YAML": (recipe_text("name: ["), "not valid YAML", ["recipe.yaml"]),
    "a recipe with a section twice": (
        recipe_text("name: x\nsearch: {trials: 500}\ntask: {}\nsearch: {max_params: 600}\n"), "is there twice",
        ["recipe.yaml", "search", "line 4"],
    ),
    "a space with a pattern twice": (
        space("paths: {B: [lora]}\noverrides: {query: {ranks: [1]}, query: {ranks: [2]}}"), "is there twice",
        ["mine.yaml", "query", "line 2"],
    ),
    "a recipe that is a list": (recipe_text("[1, 2]"), "a mapping of keys to values", ["recipe.yaml", "[1, 2]"]),
    "an empty recipe": (recipe_text(""), "a mapping of keys to values", ["recipe.yaml", "None"]),
    "a recipe that is no text": (recipe_text(b"\xff\xfe\x00\x81"), "not valid YAML", ["recipe.yaml"]),
    "a recipe that builds objects": (
        recipe_text("name: !!python/object/apply:os.getcwd []"), "not valid YAML", ["recipe.yaml"],
    ),
    "an unknown key": (setting("sede=1"), "no such key", ["sede", "did you mean seed", "got 1"]),
    "an unknown key of a section": (setting("search.trails=5"), "no such key", ["search.trails", "trials"]),
    "a missing section": (recipe_text("name: x\nspace: glora\n"), ": missing", ["task: missing", "data: missing"]),
    "a scalar for a section": (setting("search=3"), "search: got 3; allowed:", ["mapping"]),
    "a word for a number": (setting("search.trials=many"), "allowed: a valid integer", ["search.trials", "many"]),
    "no trials": (setting("search.trials=0"), "allowed: greater than or equal to", ["search.trials", "0"]),
    "a negative number of calibration steps": (
        setting("search.calibration_steps=-1"), "allowed: greater than or equal to", ["search.calibration_steps", "-1"]
    ),
    "a negative budget": (setting("search.max_params=-1"), "allowed: greater than or equal to", ["max_params", "-1"]),
    "a negative seed": (setting("seed=-1"), "allowed: greater than or equal to", ["seed", "-1"]),
    "a seed that numpy does not take": (setting("seed=4294967296"), "allowed: less than", ["seed", "4294967296"]),
    "a fraction above 1": (setting("data.test_fraction=2"), "allowed: less than", ["data.test_fraction", "2"]),
    "a name that is no folder's": (setting("name=a/b"), "name: got", ["a/b", "pattern"]),
    "a device that is not there": (
        setting("task.device_map={'': nowhere}"), "or devices of this machine", ["task.device_map", "nowhere", "cpu"],
    ),
    "packing of what is no text": (
        setting("task.packing=true"), "only causal-lm packs rows", ["task.packing", "True", "text-classification"],
    ),
    "a training argument by a name that others use": (
        setting("supernet.training.lr=0.1"), "a field of transformers.TrainingArguments", ["lr", "e.g. learning_rate"],
    ),
    "metrics that a Trainer makes batch by batch": (
        setting("retrain.training.batch_eval_metrics=true"), "a metric is made of all batches together", ["retrain"],
    ),
    "batches that a Trainer does not put together": (
        setting("retrain.training.eval_do_concat_batches=false"), "a metric is made of all batches together", ["true"],
    ),
    "a chat of what is no text": (
        setting("task.chat=true"), "only causal-lm has a chat template", ["task.chat", "True", "text-classification"],
    ),
    "an unknown sampler": (
        setting("search.sampler=annealing"), "search.sampler: got", ["annealing", "evolution", "nsga2", "import path"],
    ),
    "a sampler that cannot be imported": (
        setting("search.sampler=nothing.Sampler"), "search.sampler: got", ["nothing.Sampler", "nothing"],
    ),
    "an option that the sampler has not": (
        setting("search.options={parents: 3}"), "search.options", ["parents", "n_parents"],
    ),
    "a front by a sampler for one objective": (
        setting("search.objective=front"), "a sampler for several objectives", ["search.sampler", "nsga2"],
    ),
    "an unknown sampling": (
        setting("supernet.sampling=magic"), "supernet.sampling: got", ["magic", "sizes", "sandwich"],
    ),
    "a sampling that is no Sampling": (
        setting("supernet.sampling=os.path.join"), "supernet.sampling: got", ["os.path.join"],
    ),
    "an option that the sampling has not": (
        setting("supernet.sampling_options={share: 3}"), "supernet.sampling_options", ["share"],
    ),
    "an unknown task": (setting("task.type=poetry"), "task.type", ["poetry", "text-classification"]),
    "a smaller budget that is not smaller": (
        setting("search.max_params=600", "search.budgets=[700]"), "budgets below max_params",
        ["search.budgets", "700"],
    ),
    "a smaller budget below the cheapest subnet": (
        space("targets: [query]\npaths: {B: [lora]}\nranks: [1, 2]", "search.max_params=[600, 10]"),
        "the parameters of the cheapest subnet", ["search.budgets", "10"],
    ),
    "a budget with which nobody can race": (
        setting("search.max_params=0", "finals={}"), "a subnet or a method can train", ["search.max_params", "got 0"],
    ),
    "a smaller budget with which nobody can race": (
        setting("search.max_params=[600, 0]", "finals={}"), "a subnet or a method can train", ["got 0"],
    ),
    "budgets twice": (
        setting("search.max_params=[600, 300]", "search.budgets=[200]"), "where max_params lists all budgets", ["200"],
    ),
    "a supernet of smaller subnets than the budget": (
        setting("search.max_params=600", "supernet.max_params=500"), "at least search.max_params",
        ["supernet.max_params", "500", "600"],
    ),
    "a learning rate of 0 in the finals": (
        setting("finals={rates: [0]}"), "allowed: greater than", ["finals.rates.0", "0"],
    ),
    "a share above 1": (
        setting("finals={teacher_share: 2}"), "allowed: less than or equal to", ["finals.teacher_share", "2"],
    ),
    "evaluations of one's own in the finals": (
        setting("finals={training: {eval_steps: 3}}"), "nothing: the race sets it", ["finals.training.eval_steps", "3"],
    ),
    "unlabelled rows without a teacher": (
        setting("data.unlabelled=more.csv"), "null without finals.teacher", ["data.unlabelled", "more.csv"],
    ),
    "unlabelled rows that are not there": (
        setting("finals={}", "data.unlabelled=more.csv"), "a csv file that exists", ["data.unlabelled", "more.csv"],
    ),
    "unlabelled rows that all have a label": (
        lambda world: csv("train", ROWS, "finals={}", f"data.unlabelled={world.write('all.csv', ROWS)}")(world),
        "rows that are in no other split", ["data.unlabelled"],
    ),
    "a word for whether to fold": (setting("search.fold=perhaps"), "a valid boolean", ["search.fold", "perhaps"]),
    "an unknown source": (setting("data.source=ftp"), "data.source", ["ftp", "csv", "hub"]),
    "no source": (setting("data={train: a.csv}"), "data.source", ["None", "one of"]),
    "an unknown training argument": (
        setting("supernet.training.num_epochs=3"), "a field of transformers.TrainingArguments", ["num_train_epochs"],
    ),
    "the training's output_dir": (
        setting("supernet.training.output_dir=x"), "a field of transformers.TrainingArguments", ["output_dir"],
    ),
    "a training argument of another type": (
        setting("retrain.training.learning_rate=fast"), "retrain.training.learning_rate", ["fast", "number"],
    ),
    "a batch of no rows": (
        setting("supernet.training.per_device_train_batch_size=0"), "per_device_train_batch_size", ["got 0", ">= 1"],
    ),
    "a learning rate that is no number": (
        setting("supernet.training.learning_rate=.nan"), "learning_rate", ["nan", ">= 0"],
    ),
    "less than no epochs": (setting("retrain.training.num_train_epochs=-1"), "num_train_epochs", ["-1", "above 0"]),
    "a training argument that needs another": (
        setting("supernet.training.load_best_model_at_end=true"), "what transformers.TrainingArguments takes",
        ["supernet.training", "load_best_model_at_end"],
    ),
    "a package that a training argument needs": (
        setting("supernet.training.report_to=wandb"), "arguments with which a training can start",
        ["supernet.training", "wandb", "pip install"],
    ),
    "an argument that only the baseline has": (
        setting("baseline.training.adam_beta1=2"), "arguments with which a training can start", ["baseline.training"],
    ),
    "a metric that no evaluation has": (
        setting(
            "retrain.training={use_cpu: true, eval_strategy: epoch, load_best_model_at_end: true, "
            "metric_for_best_model: f1}"
        ),
        "metric_for_best_model", ["retrain.training.", "f1", "accuracy", "loss"],
    ),
    "a learning rate's unknown kind": (setting("supernet.lr_factors={loar: 2}"), "lr_factors", ["loar", "lora"]),
    "an unknown baseline": (setting("baselines=[magic]"), "baselines.0: got", ["magic", "lora"]),
    # --set
    "--set without a value": (setting("nonsense"), "key.sub=value", ["--set", "nonsense"]),
    "--set without a key": (setting("=3"), "key.sub=value", ["--set", "=3"]),
    "--set below a value": (setting("name.sub=3"), "a key below a mapping", ["--set", "name.sub=3"]),
    "--set with broken YAML": (setting("search=["), "not valid YAML", ["--set search", "["]),
    # spaces
    "an unknown space": (setting("space=nothing"), SHIPPED, ["space", "nothing", "glora-paper"]),
    "a kind that a path cannot take": (space("paths: {C: [constant]}"), "paths.C: got", ["constant", "vector"]),
    "a path that is none": (space("paths: {F: [lora]}"), "paths: got", ["F", "A_B"]),
    "no paths": (space("paths: {}"), "at least one path", ["paths"]),
    "a path without kinds": (space("paths: {B: []}"), "at least one kind", ["paths.B"]),
    "a tie and its member": (space("paths: {A_B: [lora], A: [none]}"), "(tied) or", ["A_B", "A and B"]),
    "a rank that is no number": (space("paths: {B: [lora]}\nranks: [true]"), "ranks", ["True", "integer"]),
    "nothing to search": (
        space("paths: {B: [lora, none]}\nranks: [0]"), "paths that add parameters to this", ["space.paths"],
    ),
    "a negative rank": (space("paths: {B: [lora]}\nranks: [-2]"), "a list of ints >= 0", ["ranks", "-2"]),
    "an unknown key of a space": (space("paths: {B: [lora]}\nrank: [2]"), "no such key", ["rank", "ranks"]),
    "a pattern that is none": (
        space("targets: '*query'\npaths: {B: [lora, none]}"), "a regular expression", ["targets", "*query"],
    ),
    "targets of another type": (space("targets: {a: 1}\npaths: {B: [lora]}"), "module names", ["targets"]),
    "targets one of which matches no layer": (
        space("targets: [query, valeu]\npaths: {B: [lora]}"), "names that each match a layer",
        ["space.targets", "valeu"],
    ),
    "targets that match no layer": (
        space("targets: [nothing]\npaths: {B: [lora]}"), "names that match a layer", ["space.targets", "nothing"],
    ),
    "a target that cannot be adapted": (
        space("targets: [word_embeddings]\npaths: {B: [lora]}"), "word_embeddings", ["Embedding"],
    ),
    "an override that matches no layer": (
        space("paths: {B: [lora, none]}\noverrides: {qeury: {ranks: [1]}}"), "patterns that match a layer", ["qeury"],
    ),
    "a pattern all of whose layers are another's": (
        space("paths: {B: [lora, none]}\noverrides: {query: {ranks: [1]}, self.query: {ranks: [2]}}"),
        "which none before them matches", ["space.overrides", "self.query"],
    ),
    "a budget below the cheapest subnet": (
        space("paths: {B: [lora]}\nranks: [2]", "search.max_params=9"), "the parameters of the cheapest subnet",
        ["search.max_params", "9", "at least"],
    ),
    # data
    "data that is not there": (setting("data.train=none.csv"), "a csv file that exists", ["data.train", "none.csv"]),
    "a folder for data": (setting("data.train=."), "a csv file that exists", ["data.train"]),
    "an empty file": (csv("train", ""), NO_CSV, ["data.train", "own.csv"]),
    "a header and nothing else": (csv("train", "text,label\n"), "rows that each have a label", ["no rows"]),
    "no header": (csv("train", ROWS.partition("\n")[2]), "a column of", ["data.text_column", "a goal 0, sports"]),
    "a missing column": (setting("data.text_column=body"), "a column of", ["data.text_column", "body", "text, label"]),
    "one column for both": (setting("data.text_column=label"), "another column than text_column", ["label_column"]),
    "one text": (
        csv("train", ROWS.replace("a chip", "a goal").translate(dict.fromkeys(range(48, 58)))),
        "a column with at least 2 different inputs", ["data.text_column", "the same in every row"],
    ),
    "two columns of a name": (
        csv("train", ROWS.replace("text,label", "text,label,label").replace("s\n", "s,s\n")), NO_CSV,
        ["line 1: 2 columns are called label"],
    ),
    "labels that look alike": (
        csv("train", ROWS + "a song,te\u200bch\n"), "these look alike", ["tech (8 times), te\\u200bch (1 times)"],
    ),
    "two spellings of a number": (
        csv("train", ROWS.replace("sports", "1").replace("tech", "2") + "a song,1.0\n"), "these are one number",
        ["1 (8 times), 1.0 (1 times)"],
    ),
    "a packed file": (csv("train", b"\x1f\x8b\x08\x00"), NO_CSV, ["data.train", "this is gzip"]),
    "one label": (csv("train", ROWS.replace("tech", "sports"), "data.validation=null", "data.test=null"),
        "at least 2 different labels", ["data.label_column", "sports"],
    ),
    "a row without a label": (
        csv("train", ROWS + "a song,\n"), "rows that each have a label", ["data.train", "no label in row 17"],
    ),
    "labels that letter case alone separates": (
        csv("train", ROWS + "a song,Tech\n"), "letter case alone separates these", ["Tech (1 times), tech (8 times)"],
    ),
    "a label of the test in another case": (
        csv("test", ROWS.replace("tech", "TECH")), "letter case alone separates these", ["data.test", "TECH (8 times)"],
    ),
    "numbers on a scale as labels": (
        csv("train", "text,label\n" + "".join(f"a goal {n},{n / 8}\n" for n in range(20))),
        "numbers on a scale are learned by task.type text-regression", ["data.label_column", "0.125"],
    ),
    "several labels in a row as one": (
        csv("train", ROWS + "a song,sports|tech\n"), "are learned by task.type multi-label", ["'sports|tech'"],
    ),
    "lists for texts": (
        lambda world: setting(
            "data={source: json, train: own.json}", world.write("own.json", LISTS) and "task.max_length=16"
        )(world),
        "a column of text, not of", ["data.text_column", "'text'", "['a goal 0']"],
    ),
    "mappings for labels": (
        lambda world: setting(
            "data={source: json, train: own.json}", world.write("own.json", MAPPINGS) and "task.max_length=16"
        )(world),
        "a column of names or numbers", ["data.label_column", "{'is': 'x'}"],
    ),
    "marks for several labels": (
        lambda world: setting(
            "data={source: json, train: own.json}",
            "task.type=multi-label",
            world.write("own.json", MULTI_HOT) and "task.max_length=16",
        )(world),
        "not a 0 or 1 for each label", ["data.label_column", "[1, 0, 0]", "lists of the names"],
    ),
    "words for numbers": (
        setting("task.type=text-regression"), "a number as every row's target", ["data.train", "'sports'", "row 1"],
    ),
    "one number for all": (
        csv("train", ROWS.replace("tech", "1").replace("sports", "1"), "task.type=text-regression"),
        "at least 2 different numbers", ["data.label_column", "[1.0]"],
    ),
    "a column of no task": (
        setting("task.type=multi-label", "data.image_column=x"), "nothing: this", ["data.image_column", "multi-label"],
    ),
    "a label that only the test has": (
        csv("test", ROWS + "a song,music\n"), "labels that train has", ["data.test", "music", "sports, tech"],
    ),
    "a label that only the validation has": (
        csv("validation", ROWS + "a song,music\n"), "labels that train has", ["data.validation", "music"],
    ),
    "the same file twice": (
        lambda world: setting(f"data.test={world.recipe['data']['validation']}")(world), "another split than",
        ["data.test", "validation"],
    ),
    "another encoding": (csv("train", ROWS.replace("a", "\xe4").encode("latin-1")), NO_CSV,
        ["data.train", "line 1: byte 0xe4 is not UTF-8", "Latin-1"],
    ),
    "two bytes a character": (csv("train", ROWS.encode("utf-16")), NO_CSV, ["data.train", "this is UTF-16"]),
    "a byte that is no text": (csv("train", ROWS + "a\0,tech\n"), NO_CSV, ["line 18: byte 0x00 is no text"]),
    "a quote that nothing ends": (csv("train", ROWS + 'a "chip",tech\n"a chip,tech\n'), NO_CSV, ["line 19"]),
    "a separator of two characters": (
        setting("data.separator=;;"), "one ASCII character that is no quote", ["data.separator", ";;"],
    ),
    "a separator that is a quote": (setting("data.separator='\"'"), "one ASCII character that is no quote", []),
    "a separator where there is none": (
        setting("data.source=json", "data.separator=;"), "only csv has one", ["data.separator", "json"],
    ),
    "another separator than the file's": (
        setting("data.separator=;"), "a column of", ["data.text_column", "text,label"],
    ),
    "a binary file": (csv("train", b"PAR1\x15\x04\x15\xb0\x00\x00\xff" * 9), NO_CSV, ["data.train", "own.csv"]),
    "rows of different lengths": (csv("train", ROWS + "a,b,c,d\n"), NO_CSV, ["data.train", "line 18"]),
    "too few rows": (
        csv("train", "text,label\na goal,sports\na chip,tech\n", "data.validation=null", "data.test=null"),
        "enough rows to cut", ["data"],
    ),
    "fewer rows than labels": (setting("data.max_train_rows=1"), "one for every label", ["data.max_train_rows", "1"]),
    "data that no hub has": (
        setting("data={source: hub, name: owner/none}"), "a data set that datasets.load_dataset can load",
        ["data.name", "owner/none"],
    ),
    # models
    "a model that is not there": (setting("task.model=./none"), "a folder that exists", ["task.model", "./none"]),
    "a folder without a model": (without_model, NO_MODEL, ["task.model", "./model"]),
    "a model without its tokenizer": (without_tokenizer, "a model with its tokenizer", ["task.model", "30,522"]),
    "a LoRA for a model": (
        adapter_for_model("peft"), "a model; this is a", ["task.model", "./adapter", "LORA adapter of roberta-base"],
    ),
    "a run's adapter for a model": (
        adapter_for_model("run"), "a model; this is a", ["GLORA_PATHS adapter of /", "glora-search merge RUN"],
    ),
    "an encoder for a language model": (
        setting("task.type=causal-lm"), "a causal language model", ["the tokens after it"],
    ),
    "a config of more layers than the weights": (
        changed_model(more_layers), "a model whose weights fit its config", ["encoder.layer.2", "32 are not there"],
    ),
    "weights that are not numbers": (changed_model(no_numbers), "a model whose loss on", ["task.model", "data.train"]),
    "a tokenizer that knows no word": (
        changed_model(no_words), "a model whose tokenizer knows the texts", ["75% of train's tokens"],
    ),
    "weights that are cut off": (broken_model, NO_MODEL, ["task.model", "./model"]),
    "a model that no hub has": (setting("task.model=owner/none"), NO_MODEL, ["task.model", "owner/none", "hub"]),
    "inputs longer than the model's": (setting("task.max_length=600"), "the model's longest input", ["max_length"]),
}  # fmt: skip
"""What is done -> (what prepares it and gives the command, the part of the message that docs/errors.md explains, more
words of the message)."""
