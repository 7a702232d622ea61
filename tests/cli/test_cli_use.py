"""``compare`` and ``predict``."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

from glora_search.run.folder import RunFolder
from glora_search.run.predict import prediction_rows, usage
from glora_search.run.questions import Questions
from glora_search.tasks import task_class

ERRORS = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")


@pytest.fixture
def other(finished):
    """A second run; ``other(key, value)`` changes its recipe."""
    folder = shutil.copytree(finished, finished.parent / "other")

    def change(section, **values):
        path = folder / "recipe.yaml"
        recipe = yaml.safe_load(path.read_text())
        recipe[section] = {**recipe[section], **values} if isinstance(recipe[section], dict) else values["to"]
        path.write_text(yaml.safe_dump(recipe))
        return folder

    change.folder = folder
    return change


def test_runs_stand_side_by_side(call, finished, other):
    code, out, _ = call("compare", finished, other.folder, "--json")
    assert code == 0
    found = json.loads(out)
    metrics = json.loads((finished / "metrics.json").read_text())
    first, second = found["runs"]
    assert (first["run"], second["run"]) == (str(finished), str(other.folder))
    assert {**first, "run": ""} == {**second, "run": ""}
    for key in ("params", "validation", "test"):
        assert first[key] == metrics["final"][key]
    assert (first["budget"], first["space"], first["sampling"]) == (1000, "glora-ranks", "sizes")
    assert first["minutes"] == pytest.approx(sum(metrics["seconds"].values()) / 60)
    assert found["notes"] == []
    code, out, _ = call("compare", finished, other.folder)
    for word in ("adapter params", "supernet", "evolution", f"{metrics['final']['test']:.4f}"):
        assert word in out
    assert "Note" not in out


def test_runs_on_other_data_or_by_another_metric_are_no_fair_comparison(call, finished, other):
    other("data", train="elsewhere.csv")
    metrics = json.loads((other.folder / "metrics.json").read_text())
    (other.folder / "metrics.json").write_text(json.dumps({**metrics, "metric": "f1"}))
    code, out, _ = call("compare", finished, other.folder)
    assert code == 0
    assert "Note: data: train is " in out
    assert "'elsewhere.csv' in" in out
    assert "Note: metric is 'accuracy' in" in out


def test_files_that_were_replaced_between_two_runs_are_noted(call, finished, other):
    path = other.folder / "origin.json"
    noted = json.loads(path.read_text())
    noted["data"]["test"]["digest"] = noted["model"]["model.safetensors"]["digest"] = "another"
    path.write_text(json.dumps(noted))
    out = " ".join(call("compare", finished, other.folder)[1].split())
    assert f"Note: data: test had other contents in {finished} than in {other.folder}." in out
    assert f"Note: task.model: model.safetensors had other contents in {finished} than in {other.folder}." in out


def test_another_seed_counts_where_it_cuts_the_splits(call, finished, other):
    other("seed", to=5)
    assert "Note" not in call("compare", finished, other.folder)[1]
    for folder in (finished, other.folder):
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        recipe["data"]["test"] = None
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "Note: data: seed is 0 in" in call("compare", finished, other.folder)[1]


def test_an_unfinished_run_has_what_it_has(call, finished, other):
    (other.folder / "metrics.json").unlink()
    shutil.rmtree(other.folder / "retrained")
    code, out, _ = call("compare", finished, other.folder, "--json")
    assert code == 0
    found = json.loads(out)
    best = json.loads((other.folder / "best" / "stage.json").read_text())
    assert (found["runs"][1]["validation"], found["runs"][1]["test"]) == (best["validation"], None)
    assert found["notes"] == [f"{other.folder} is not finished"]


def test_predictions_are_those_of_the_merged_model_in_transformers(call, finished, tmp_path):
    texts = ["a goal of the team", "new chip", " ".join(["goal"] * 300)]
    (tmp_path / "more.txt").write_text(f"{texts[1]}\n\n{texts[2]}\n")
    code, out, _ = call("predict", finished, texts[0], "--file", tmp_path / "more.txt", "--json")
    assert code == 0
    found = json.loads(out)
    assert [row["input"] for row in found] == [texts[0], texts[1], texts[2]]
    use = pipeline("text-classification", str(finished / "merged"))
    for row in found[:2]:
        expected = use(row["input"])[0]
        output = row["output"][0]
        assert output["label"] == expected["label"]
        assert output["score"] == pytest.approx(expected["score"], abs=1e-6)
    code, out, _ = call("predict", finished, texts[1])
    assert code == 0
    assert "label" in out
    assert f"{found[1]['output'][0]['score']:.4f}" in out


def learned(folder, problem, bias):
    """Change what a merged model's head has learned, and its biases."""
    path = folder / "merged" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "problem_type": problem}))
    model = AutoModelForSequenceClassification.from_pretrained(folder / "merged")
    model.classifier.weight.data.zero_()
    model.classifier.bias.data[:] = torch.tensor(bias)
    model.save_pretrained(folder / "merged")


@pytest.mark.parametrize(
    ("bias", "labels"), [([1.0, 2.0], ["tech", "sports"]), ([1.0, -1.0], ["sports"]), ([-1.0, -1.0], [None])]
)
def test_several_labels_are_those_above_one_half(call, other, bias, labels):
    learned(other("task", type="multi-label"), "multi_label_classification", bias)
    code, out, _ = call("predict", other.folder, "goal", "--json")
    assert code == 0
    found = json.loads(out)[0]["output"]
    assert [row["label"] for row in found] == labels
    if labels != [None]:
        assert found[0]["score"] == pytest.approx(1 / (1 + math.exp(-max(bias))))
    assert call("predict", other.folder, "goal")[0] == 0


def test_a_regression_predicts_its_number(call, other):
    learned(other("task", type="text-regression"), "regression", [7.25, -3.0])
    code, out, _ = call("predict", other.folder, "goal", "--json")
    assert code == 0
    assert json.loads(out)[0]["output"][0]["score"] == pytest.approx(7.25)


def test_a_sequence_to_sequence_model_answers_as_long_as_it_was_trained(call, finished, other, tiny_model):
    shutil.rmtree(other.folder / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    size = {"vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(**size, decoder_start_token_id=0, eos_token_id=None, pad_token_id=0)
    model = T5ForConditionalGeneration(config)
    model.generation_config.update(do_sample=True, temperature=5.0)
    model.save_pretrained(other.folder / "merged")
    tokenizer.save_pretrained(other.folder / "merged")
    (other.folder / "merged" / "stage.json").write_text('{"seconds": 1}')
    other("task", type="seq2seq-lm", max_length=30, prompt="the {text} says")
    code, out, err = call("predict", other.folder, "goal", "--json")
    assert code == 0, err
    model = T5ForConditionalGeneration.from_pretrained(other.folder / "merged")
    batch = tokenizer("the goal says", return_tensors="pt", return_token_type_ids=False)
    expected = model.generate(**batch, max_new_tokens=30, do_sample=False)[0]
    assert len(expected) == 31
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert json.loads(out)[0]["output"][0]["generated_text"] == text


def language_model(folder, tiny_model):
    """A tiny language model in place of a run's merged one, whose own way to generate is by chance."""
    shutil.rmtree(folder / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**size, vocab_size=len(tokenizer), eos_token_id=None, pad_token_id=0))
    model.generation_config.update(do_sample=True, temperature=5.0, max_new_tokens=12)
    model.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    (folder / "merged" / "stage.json").write_text('{"seconds": 1}')
    return folder


def test_a_language_model_gives_the_same_answer_each_time_and_not_the_question_again(call, other, tiny_model):
    language_model(other.folder, tiny_model)
    other("task", type="causal-lm", prompt="the {text} says")
    answers = []
    for _ in range(2):
        code, out, err = call("predict", other.folder, "goal", "--json")
        assert code == 0, err
        answers.append(json.loads(out)[0]["output"][0]["generated_text"])
    assert answers[0] == answers[1]
    assert not answers[0].strip().startswith("the goal says")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (None, ["goal", " "]),
        ("say: {text}\n", ["say: goal\n", "say:  \n"]),
        (["say: {text}", "{text}!"], ["say: goal", " !"]),
    ],
)
def test_a_text_is_put_into_the_prompt_that_the_model_was_trained_with(
    call, finished, other, monkeypatch, prompt, expected
):
    seen = []
    monkeypatch.setattr(
        "transformers.pipeline", lambda *_, **__: lambda text, **_: seen.append(text) or [{"text": text}]
    )
    other("task", type="causal-lm", prompt=prompt)
    code, _, err = call("predict", other.folder, "goal", " ")
    assert code == 0, err
    assert seen == expected


ALPACA = ["Do {instruction} with {input}:\n", "Do {instruction}:\n"]


@pytest.fixture
def asked(other, monkeypatch):
    """``asked(section, **values)``: the changed run, and a list of what its pipeline will be called with."""

    def change(section, **values):
        seen = []
        monkeypatch.setattr(
            "transformers.pipeline", lambda *_, **__: lambda text, **_: seen.append(text) or [{"text": "x"}]
        )
        return other(section, **values), seen

    return change


def test_a_prompt_of_several_columns_is_given_by_column_by_rows_or_shortened_to_one(call, asked, tmp_path, monkeypatch):
    run, seen = asked("task", type="causal-lm", prompt=ALPACA)
    rows = [{"instruction": "one\n\nmore", "input": "b", "output": "not read"}, {"instruction": "two", "input": None}]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    expected = ["Do one\n\nmore with b:\n", "Do two:\n"]
    for file in ("rows.jsonl", "rows.json"):
        assert call("predict", run, "--file", tmp_path / file)[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, out, err = call(
        "predict", run, "--set", "instruction=a=b", "--set", "input=c", "--file", "-", "--json", "plain"
    )
    assert code == 0, err
    assert seen == [*expected * 2, "Do plain:\n", "Do a=b with c:\n", *expected]
    assert [row["input"] for row in json.loads(out)] == ["plain", {"instruction": "a=b", "input": "c"}, *rows]


def test_a_question_of_several_lines_stays_one(call, asked, tmp_path):
    run, seen = asked("task", type="causal-lm", prompt="{text}!")
    (tmp_path / "question.txt").write_text("what\n\nis {this}?\n")
    assert call("predict", run, "one\ntwo", "--file", tmp_path / "question.txt")[0] == 0
    assert seen == ["one\ntwo!", "what\n\nis {this}?!"]


def test_a_conversation_is_asked_up_to_its_last_answer(call, asked, tmp_path):
    run, seen = asked("data", messages_column="chat")
    turns = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user", "assistant")]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"chat": turns}))
    assert call("predict", run, "hello", "--file", tmp_path / "rows.jsonl")[0] == 0
    assert seen == [[{"role": "user", "content": "hello"}], turns[:4]]


def test_a_model_that_learned_completions_of_messages_is_asked_by_its_chat_template(call, asked):
    run, seen = asked("data", text_column="prompt", response_column="completion")
    path = run / "merged" / "stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chats": True}))
    assert call("predict", run, "hello")[0] == 0
    assert seen == [[{"role": "user", "content": "hello"}]]


def test_an_answer_is_printed_as_it_is_and_as_long_as_asked_for(call, other, monkeypatch):
    given = {}

    def use(text, **options):
        given.update(options)
        return [{"generated_text": "one\ntwo"}]

    monkeypatch.setattr("transformers.pipeline", lambda *_, **__: use)
    run = other("task", type="causal-lm", prompt="{text}!")
    code, out, _ = call("predict", run, "what?", "--max-new-tokens", "3")
    assert (code, out) == (0, "> what?\none\ntwo\n\n")
    assert given["max_new_tokens"] == 3


def test_the_length_of_an_answer_is_refused_where_nothing_is_written(call, finished):
    code, _, err = call("predict", finished, "a goal", "--max-new-tokens", "3")
    assert (code, "--max-new-tokens: got 3; allowed: nothing: text-classification writes no text" in err) == (2, True)


def test_pairs_of_texts_are_given_by_column(call, asked):
    run, seen = asked("data", text_pair_column="other")
    assert call("predict", run, "--set", "text=a goal", "--set", "other=a match")[0] == 0
    assert seen == [{"text": "a goal", "text_pair": "a match"}]


@pytest.mark.parametrize(
    ("section", "values"),
    [("task", {"type": "causal-lm", "prompt": "{question} or {other}"}), ("data", {"text_pair_column": "other"})],
)
def test_one_text_for_a_model_that_takes_several_is_refused_with_the_options_that_give_them(
    call, other, section, values
):
    code, _, err = call("predict", other(section, **values), "a goal")
    assert code == 2
    assert "a value for each column: --set" in err
    assert "--set other=..." in err
    assert "a value for each column" in ERRORS


def said_by(line, capsys, *, process):
    """What a line of Python prints that a shell is given in double quotes, in a process of its own or here."""
    program = f'"{sys.executable}" -c' if process else "printf %s"
    done = subprocess.run(f'{program} "{line}"', shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if process:
        return done.stdout
    exec(done.stdout, {})
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [None, "say: {text}\n", 'the "{text}" & $HOME\\n `a` it\'s {{x}}!\n', ALPACA])
def test_the_printed_line_gives_the_answer_of_predict(call, other, tiny_model, capsys, prompt):
    folder = language_model(other.folder, tiny_model)
    other("task", type="causal-lm", prompt=prompt)
    line = usage(RunFolder(folder))
    assert '"' not in line
    said = said_by(line, capsys, process="$HOME" in str(prompt))
    name = "instruction" if prompt is ALPACA else "text"
    code, out, err = call("predict", folder, f"Your {name} here", "--json")
    assert code == 0, err
    assert said.rstrip("\n") == json.loads(out)[0]["output"][0]["generated_text"]


def test_the_end_that_a_tokenizer_puts_after_a_text_is_not_a_part_of_what_is_asked(call, other, tiny_model, capsys):
    folder = language_model(other.folder, tiny_model)
    other("task", type="causal-lm")
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    tokenizer.eos_token = "[SEP]"  # which the tokenizer of a BERT puts there
    tokenizer.save_pretrained(folder / "merged")
    model = LlamaForCausalLM.from_pretrained(folder / "merged")
    ids = tokenizer("the goal", return_tensors="pt").input_ids[:, :-1]
    answer = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
    code, out, err = call("predict", folder, "the goal", "--json", "--max-new-tokens", "12")
    assert code == 0, err
    said = json.loads(out)[0]["output"][0]["generated_text"]
    assert said.strip() == tokenizer.decode(answer, skip_special_tokens=True).strip()
    line = usage(RunFolder(folder)).replace("Your text here", "the goal")
    exec(line.replace("max_new_tokens=256", "max_new_tokens=12"), {})
    assert capsys.readouterr().out.strip() == said.strip()


def test_the_printed_line_of_a_chat_asks_as_a_user():
    recipe = {"task": {"type": "causal-lm"}, "data": {"messages_column": "chat"}}
    line = task_class("causal-lm").usage("merged", Questions(recipe).example("unused"))
    assert "([{'role': 'user', 'content': 'Your text here'}], do_sample=False, return_full_text=False)" in line


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_model(call, other, monkeypatch):
    def use(text, **_):
        raise ValueError("no such image")

    monkeypatch.setattr("transformers.pipeline", lambda *_, **__: use)
    code, _, err = call("predict", other.folder, "none.png")
    assert code == 2
    assert "TEXT: got 'none.png'" in " ".join(err.split())
    assert "no such image" in err
    assert "--again" not in err


@pytest.mark.parametrize(
    ("output", "rows"),
    [
        ({"label": "a", "score": 0.5}, [{"label": "a", "score": 0.5}]),
        ([{"label": "a"}, {"label": "b"}], [{"label": "a"}, {"label": "b"}]),
        ([[{"generated_text": "x"}]], [{"generated_text": "x"}]),
        ([], []),
        ("plain", [{"output": "plain"}]),
    ],
)
def test_whatever_a_pipeline_returns_is_rows(output, rows):
    assert prediction_rows(output) == rows
