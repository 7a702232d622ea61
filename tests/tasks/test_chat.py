"""Conversations: the assistant's turns alone are learned, or it is said that they cannot be told."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TextGenerationPipeline

from glora_search.errors import UserError
from glora_search.files.text import read_json
from glora_search.metrics import Panel
from glora_search.recipe.schema import Recipe
from glora_search.report import write_report
from glora_search.run.predict import predict
from glora_search.run.prepare import check
from glora_search.run.runner import Run
from glora_search.tasks import make_task
from glora_search.tasks.chat import ChatTemplate

GROWING = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>\n"
    "{% endgeneration %}{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = GROWING.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else '' }}")
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + GROWING
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}\n{% else %}Team:GAP"
    "{% generation %}{{ m.content }}\n{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Team:END{% endif %}"
)
THOUGHTFUL = GROWING.replace("|>{{ m.content }}", "|>{{ 'big of ' if m.role == 'assistant' else '' }}{{ m.content }}")
COLUMN = {"messages_column": "messages"}


def turns(*contents, roles=("user", "assistant")):
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(contents)]


def shifted(messages, number):
    """The same with a number in it."""
    if isinstance(messages, str):
        return f"{messages} {number}"
    return [{**message, "content": f"{message['content']} {number}"} for message in messages]


@pytest.fixture
def chat(tiny, recipe, make, tmp_path):
    """``chat(rows, data, template, **task)``: a causal task whose tokenizer has a chat template."""

    def build(rows, data=COLUMN, template=GROWING, make_=make_task, **task):
        folder = tmp_path / "model"
        if not folder.exists():
            shutil.copytree(tiny("llama"), folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.add_tokens(
                [f"<|{name}|>" for name in ("system", "user", "assistant", "end")], special_tokens=True
            )
            tokenizer.chat_template = template
            tokenizer.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder)
            model.resize_token_embeddings(len(tokenizer))
            model.save_pretrained(folder)
        source = {"source": "json", "train": rows} if isinstance(rows, str) else rows_in(rows)
        return make_(Recipe.model_validate(recipe(folder, {**source, **data}, type="causal-lm", **task)))

    def rows_in(rows):
        return {"source": "json", "train": make.json(tmp_path / "rows.jsonl", rows)}

    return build


def learned(made, row=0):
    """What is learned of a train row, its parts separated."""
    ids, labels = made.train["input_ids"][row], made.train["labels"][row]
    assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
    shown = [made.tokenizer.decode([token]) if label != -100 else "#" for token, label in zip(ids, labels, strict=True)]
    return [part.split() for part in " ".join(shown).split("#") if part.split()]


@pytest.mark.parametrize("template", [GROWING, MARKED])
@pytest.mark.parametrize("source", ["json", "parquet"])
def test_all_turns_of_the_assistant_are_learned_and_nothing_else(chat, tmp_path, template, source):
    system = [{"role": "system", "content": "big data"}]
    rows = [
        {"messages": [*system, *turns("the goal", "a team", ["old", "new"][n % 2], "the chip says")]} for n in range(2)
    ] * 8 + [{"messages": turns(f"{word} code", "the phone")} for word in ("a", "the", "of", "and")]
    data = dict(COLUMN)
    if source == "parquet":
        pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
        data |= {"source": "parquet", "train": str(tmp_path / "rows.parquet")}
    made = chat(rows, data, template)
    found = [learned(made, row) for row in range(len(made.train))]
    long = [["a", "team", "<|end|>"], ["the", "chip", "says", "<|end|>"]]
    assert {str(turn) for turn in found} == {str(long), str([["the", "phone", "<|end|>"]])}
    ids = made.train["input_ids"][found.index(long)]
    assert made.tokenizer.decode(ids).replace(" ", "").count("<|assistant|>") == 2  # the text is the template's
    assert made.tokenizer.decode(ids).replace("<s>", "").split()[:3] == ["<|system|>", "big", "data"]


def test_what_a_template_writes_at_the_end_of_a_conversation_alone_is_no_part_of_an_earlier_turn(chat):
    ending = GROWING.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    made = chat(
        [{"messages": turns(f"the goal {n}", "a team", "the code", "a chip")} for n in range(20)], template=ending
    )
    assert learned(made)[0] == ["a", "team", "<|end|>"]
    assert learned(made)[1] == ["a", "chip", "<|end|>", "</s>"]


def test_where_the_template_writes_no_end_of_a_turn_it_is_said(chat):
    rows = [{"messages": turns(f"the goal {n}", "a team")} for n in range(20)]
    endless = GROWING.replace("<|end|>", "")
    for template, said in ((GROWING, False), (endless, True)):
        made = chat(rows, template=template)
        notes = [note for note in made.row_notes() if "does not learn where an answer ends" in note]
        assert bool(notes) == said
        if said:
            assert "no row has </s> in what is learned, because of the chat template or task.max_length" in notes[0]
        shutil.rmtree(made.recipe.task.model)


def test_a_turn_of_tool_calls_alone_needs_no_content(chat):
    calls = [{"type": "function", "function": {"name": "chip"}}]
    asks = {"role": "assistant", "content": None, "tool_calls": calls}
    rows = [{"messages": [*turns(f"the goal {n}"), asks, *turns("the code", "a team")]} for n in range(20)]
    template = GROWING.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls[0].function.name if m.tool_calls }}")
    assert learned(chat(rows, template=template))[0] == ["chip", "<|end|>"]


def test_a_column_of_tools_is_said_not_to_be_read(chat):
    rows = [{"messages": turns(f"the goal {n}", "a team")} for n in range(20)]
    tools = [{"type": "function", "function": {"name": "chip"}}]
    assert not [note for note in chat(rows).row_notes() if "tools" in note]
    said = chat([{**row, "tools": tools} for row in rows]).row_notes()
    assert "the column tools is not read: the chat template writes conversations without tools" in said


@pytest.mark.parametrize("template", [GROWING, MARKED])
def test_of_prompts_and_completions_that_are_messages_the_completion_is_learned(chat, template):
    rows = [
        {"prompt": turns("the goal", "a team", f"{word} match"), "completion": turns("new code", roles=["assistant"])}
        for word in ("a", "the", "old", "of", "and", "big")
    ]
    made = chat(rows, {"text_column": "prompt", "response_column": "completion"}, template)
    assert learned(made) == [["new", "code", "<|end|>"]]
    text = made.tokenizer.decode(made.train["input_ids"][0])
    assert text.count("<|assistant|>") == 2
    wrong = [{**row, "completion": "new code"} for row in rows]
    with pytest.raises(UserError, match=r"data\.response_column: got 'completion'; .*lists of messages.*'new code'"):
        chat(wrong, {"text_column": "prompt", "response_column": "completion"})


@pytest.mark.parametrize("template", [GROWING, MARKED])
def test_the_chat_template_writes_prompts_and_responses_that_are_text(chat, template):
    rows = [{"text": f"{word} match", "label": "new code"} for word in ("a", "the", "old", "of", "and", "big")]
    made = chat(rows, {"response_column": "label"}, template, prompt="the goal {text}", chat=True)
    assert learned(made) == [["new", "code", "<|end|>"]]
    (question, *_) = made.questions(made.data.validation)
    messages = [{"role": "user", "content": f"the goal {made.data.validation['text'][0]}"}]
    assert question.prompt == made.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert made.tokenizer.convert_tokens_to_ids("<|end|>") in made.model().generation_config.eos_token_id


@pytest.mark.parametrize(
    ("data", "message"),
    [(COLUMN, r"task\.chat: got True; .*has the turns already"), ({}, r"data\.response_column: .* for task\.chat")],
)
def test_a_chat_has_a_response_and_is_no_conversation_already(chat, data, message):
    with pytest.raises(UserError, match=message):
        chat([{"messages": turns("a goal", "a team"), "text": "goal"}], data, chat=True)


def test_a_tokenizer_without_a_chat_template_is_refused_by_name(task):
    rows = [{"messages": turns(f"{word} goal", "a team")} for word in ("a", "the", "old", "of", "and", "big")]
    with pytest.raises(UserError, match=r"task\.model: got '.*llama'; .*tokenizer has a chat template"):
        task("llama", "causal-lm", rows, COLUMN)


REFUSED = {
    "turns that change": (FORGETFUL, turns("goal", "team", "match", "code"), "does not show which tokens"),
    "an assistant that begins": (GROWING, turns("goal", "team", roles=["assistant", "user"]), "first message"),
    "a role unknown to the template": (STRICT, turns("goal", "team", roles=["system", "assistant"]), "no system role"),
    "text for a template of parts": (
        GROWING.replace("{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}"),
        turns("goal", "team"),
        "writes the content of the assistant's turns",
    ),
    "a role alone": (GROWING, [{"role": "user"}], r"data\.messages_column: got 'messages'.*a role and a content"),
    "a text": (GROWING, "goal", r"data\.messages_column: got 'messages'.*lists of messages.*'goal'"),
    "pictures": (GROWING, [{"role": "user", "content": [{"type": "image"}]}], r"a content that are text.*image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_conversations_whose_turns_cannot_be_told_are_refused(chat, name):
    template, messages, message = REFUSED[name]
    others = "goal" if isinstance(messages, str) else turns("goal", "a team")
    rows = [{"messages": messages}] * 2 + [{"messages": shifted(others, n)} for n in range(9)]
    with pytest.raises(UserError, match=message):
        chat(rows, template=template, max_length=64)


def test_a_template_that_changes_earlier_turns_is_fit_for_single_turns(chat):
    rows = [{"messages": turns(f"{word} goal", "a team")} for word in ("a", "the", "old", "of", "and", "big")]
    assert learned(chat(rows, template=FORGETFUL)) == [["a", "team", "<|end|>"]]


@pytest.mark.parametrize(
    ("data", "task_", "message"),
    [
        ({"response_column": "x"}, {}, r"data\.response_column: got 'x'; allowed: nothing: this causal-lm reads"),
        ({}, {"prompt": "{x}"}, r"task\.prompt: got '\{x\}'; allowed: null with data\.messages_column"),
        ({}, {"type": "seq2seq-lm"}, r"data\.(messages|response)_column"),
    ],
)
def test_what_a_chat_template_writes_is_not_written_twice(task, data, task_, message):
    rows = [{"messages": turns("a goal", "a team")}]
    with pytest.raises(UserError, match=message):
        task("llama", task_.pop("type", "causal-lm"), rows, {**COLUMN, **data}, **task_)


def seen(preprocess, asked):
    """Notes the text that a pipeline gives its model."""

    def noted(self, *args, **kwargs):
        made = preprocess(self, *args, **kwargs)
        asked.append(self.tokenizer.decode(made["input_ids"][0]))
        return made

    return noted


@pytest.mark.slow
def test_from_a_chat_file_to_a_merged_model_with_a_note_of_cut_rows(chat, make, tmp_path, capsys, monkeypatch):
    rows = [{"messages": turns(text, "the team")} for text, _ in make.sentences(24)]
    rows += [{"messages": turns(f"{word} goal", "the team " * 20)} for word in ("a", "the", "old", "of", "new", "big")]
    made = chat(rows, make_=lambda recipe: recipe)
    task = check(made)
    assert f"note: {task.fit.cut} of" in capsys.readouterr().out
    run = Run.create(made, tmp_path / "run")
    run.all_stages()
    notes = [note for note in read_json(run.folder / "metrics.json")["notes"] if "task.max_length, 24 tokens" in note]
    assert any("rows of data.train are cut at" in note for note in notes)
    assert all(note in write_report(run.folder).read_text(encoding="utf-8") for note in notes)
    asked = []
    monkeypatch.setattr(TextGenerationPipeline, "preprocess", seen(TextGenerationPipeline.preprocess, asked))
    answer = predict(run.view, ["a goal"])[0][0]["generated_text"]
    assert isinstance(answer, str)
    assert [text.split() for text in asked] == [["<s>", "<|user|>", "a", "goal", "<|end|>", "<|assistant|>"]]


@pytest.mark.parametrize("template", [GROWING, MARKED])
def test_the_last_turn_is_asked_for_and_its_end_is_known(chat, template):
    rows = [shifted(turns("the team", "a goal", "new code", "the chip"), n) for n in range(12)]
    made = chat([{"messages": [*row, {"role": "user", "content": "old"}]} for row in rows], template=template)
    questions = made.questions(made.asked(made.data.validation))
    for question, row in zip(questions, made.data.validation["messages"], strict=True):
        assert question.expected == row[3]["content"]
        assert question.prompt == made.tokenizer.apply_chat_template(
            row[:3], tokenize=False, add_generation_prompt=True
        )
    end = made.tokenizer.convert_tokens_to_ids("<|end|>")
    assert end in made.ends(made.data.validation)
    assert made.model().generation_config.eos_token_id == [made.tokenizer.eos_token_id, end]  # so is the merged model's
    ((ids, labels),) = made.completed(made.data.validation.select([0]), ["the data"])
    assert made.tokenizer.decode([token for token in labels if token != -100]).split()[:2] == ["the", "data"]
    assert made.tokenizer.decode(ids).count("<|assistant|>") == 2


def test_a_conversation_in_which_nothing_is_asked_is_not_scored(chat):
    rows = [{"messages": shifted(turns("the team", "a goal"), n)} for n in range(12)]
    rows += [{"messages": shifted([{"role": "user", "content": "new"}], n)} for n in range(12)]
    made = chat(rows)
    assert all(len(row) > 1 for row in made.asked(made.data.train)["messages"])
    assert len(made.asked(made.data.train)) < len(made.data.train)


def test_conversations_without_an_assistant_are_refused_with_their_roles(chat):
    rows = [
        {"messages": [{"role": "user", "content": "the team"}, {"role": "gpt", "content": f"{n}"}]} for n in range(9)
    ]
    with pytest.raises(UserError, match=r"data\.messages_column: got 'roles gpt, user'; allowed: .*'assistant'"):
        chat(rows)


def test_the_last_message_of_a_completion_is_the_answer(chat):
    completion = turns("a goal", roles=["assistant"])
    rows = [{"prompt": shifted(turns("the team"), n), "completion": completion} for n in range(12)]
    made = chat(rows, {"text_column": "prompt", "response_column": "completion"})
    assert {question.expected for question in made.questions(made.data.validation)} == {"a goal"}


@pytest.mark.parametrize("answers", ["de", ["", "the team"]], ids=["letters of the end's own name", "empty ones"])
def test_the_end_of_a_turn_is_known_whatever_the_answers_are(chat, answers):
    rows = [
        {"messages": [*shifted(turns("a goal"), n), *turns(answers[n % 2], roles=["assistant"])]} for n in range(12)
    ]
    made = chat(rows)
    end = made.tokenizer.convert_tokens_to_ids("<|end|>")
    for number in (0, 1):  # whichever answer comes first
        data = made.data.train
        first = next(n for n, row in enumerate(data["messages"]) if row[1]["content"] == answers[number])
        assert made.ends(data.select([first])) == [made.tokenizer.eos_token_id, end]
    assert made.model().generation_config.eos_token_id == [made.tokenizer.eos_token_id, end]


@pytest.mark.parametrize("marks", [True, False])
def test_what_is_asked_and_what_is_learned_are_all_tokens_though_one_crosses_from_the_prompt(tiny, marks):
    template = SPACED.replace("GAP", " ").replace("END", " ")
    if not marks:
        template = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    assert tokenizer.tokenize(" goal") == ["\u0120goal"]  # one token
    tokenizer.chat_template = template
    chat = ChatTemplate(tokenizer, name="gpt2")
    messages = turns("old", "goal", "new", "match team")
    ids, labels = chat.encode(messages)
    asked = chat.question(messages[:1])[1]
    assert ids[: len(asked)] == asked
    assert (labels[len(asked) - 1], labels[len(asked)]) == (-100, ids[len(asked)])
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode([label for label in labels if label != -100]) == "goal\nmatch team\n"


def test_a_mark_within_a_token_of_the_answer_leaves_the_token_whole(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    tokenizer.chat_template = SPACED.replace("GAP", " ").replace("END", "")  # asked without the space
    _, labels = ChatTemplate(tokenizer, name="gpt2").encode(turns("old", "goal"))
    assert tokenizer.decode([label for label in labels if label != -100]) == " goal\n"


class Writer(nn.Module):
    """Writes one text, cut where it has to be."""

    def __init__(self, ids):
        super().__init__()
        self.unused, self.ids = nn.Parameter(torch.zeros(1)), ids

    def generate(self, input_ids, attention_mask, generation_config):
        new = torch.tensor([self.ids[: generation_config.max_new_tokens]] * len(input_ids))
        return torch.cat([input_ids, new], dim=1)


@pytest.mark.parametrize(
    ("written", "value"), [("big of the team", 1), ("the team", 1), ("big the team", 0), ("big of a team", 0)]
)
def test_what_the_template_writes_before_every_answer_is_no_part_of_an_answer(chat, written, value):
    rows = [{"messages": [*shifted(turns("a goal"), n), *turns("the team", roles=["assistant"])]} for n in range(12)]
    made = chat(rows, template=THOUGHTFUL, metrics=[{"type": "exact-match", "max_new_tokens": 2}])
    assert learned(made) == [["big", "of", "the", "team", "<|end|>"]]
    panel = Panel(made, {"validation": made.data.validation})
    assert panel.check() == []
    end = made.tokenizer.eos_token_id
    ids = [*made.tokenizer(written, add_special_tokens=False)["input_ids"], end, end]
    values, _ = panel.score(Writer(ids))
    assert values == {"exact_match": {"validation": value}}


def test_empty_responses_are_counted_in_a_chat_too(make, chat):
    rows = [{**row, "label": row["label"] if n % 2 else " "} for n, row in enumerate(make.rows(40))]
    made = chat(rows, {"response_column": "label"}, chat=True)
    count = sum(label == " " for label in made.data.train["label"])
    note = f"{count} of {len(made.data.train)} rows of data.train have an empty response, which the model learns"
    assert note in made.row_notes()
