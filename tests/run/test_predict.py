"""Predictions with a merged model: inputs that are too long, and outputs without a row."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, BertForTokenClassification, GPT2Config, GPT2LMHeadModel

from glora_search.errors import UserError
from glora_search.progress import console, say
from glora_search.run.folder import RunFolder
from glora_search.run.predict import of_8_bits, predict, row_of


@pytest.fixture
def asked(copied, tiny_model):
    """``asked(model, **task)``: a run folder whose merged model is this one."""

    def make(model, **task):
        merged = copied.folder / "merged"
        shutil.rmtree(merged)
        model.save_pretrained(merged)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(merged)
        (merged / "stage.json").write_text('{"seconds": 1}')
        recipe = yaml.safe_load((copied.folder / "recipe.yaml").read_text())
        recipe["task"] |= task
        (copied.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return RunFolder(copied.folder)

    return make


def test_an_answer_ends_with_the_models_last_position_and_a_prompt_beyond_it_is_refused(asked, tiny_model):
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "eos_token_id": None}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**size, vocab_size=len(AutoTokenizer.from_pretrained(tiny_model))))
    run = asked(model, type="causal-lm", prompt="{text}")
    (answer,) = predict(run, ["goal " * 8], max_new_tokens=30)
    assert answer[0]["generated_text"]
    with pytest.raises(
        UserError, match=r"TEXT: got .*\.\.\..*leave no room.* the model has 16 positions, input 2 of 2"
    ):
        predict(run, ["goal", "goal " * 40])


def test_a_text_is_cut_where_it_was_in_training_and_one_without_a_tag_keeps_its_row(asked, call, tiny_model):
    config = AutoConfig.from_pretrained(tiny_model, id2label={0: "O", 1: "B-S"}, label2id={"O": 0, "B-S": 1})
    model = BertForTokenClassification(config)
    model.classifier.weight.data.zero_()
    run = asked(model, type="token-classification", max_length=32)
    model.classifier.bias.data[:] = torch.tensor([0.0, 9.0])
    model.save_pretrained(run.path / "merged")
    (tags,) = predict(run, ["goal " * 45])
    assert len(tags) == 30  # of 32 tokens, two are special
    model.classifier.bias.data[:] = torch.tensor([9.0, 0.0])
    model.save_pretrained(run.path / "merged")
    code, out, _ = call("predict", run.path, "the goal", "the chip")
    assert (code, "the goal" in out, "the chip" in out) == (0, True, True)


def test_each_word_of_a_list_has_one_tag_and_a_text_has_those_of_its_own_words(asked, tiny_model):
    config = AutoConfig.from_pretrained(tiny_model, id2label={0: "O", 1: "B-S"}, label2id={"O": 0, "B-S": 1})
    model = BertForTokenClassification(config)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data[:] = torch.tensor([0.0, 9.0])
    run = asked(model, type="token-classification", max_length=32)
    recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
    recipe["data"] |= {"text_column": "words"}
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["goal-team", "the", "chip!", "goal"]
    listed, text = predict(RunFolder(run.path), [{"words": words}, {"words": " ".join(words)}])
    assert [(tag["start"], tag["end"]) for tag in listed] == [(0, 9), (10, 13), (14, 19), (20, 24)]
    assert len(text) > len(words)


def test_an_image_of_16_bits_is_refused_as_in_training(tmp_path):
    image = tmp_path / "deep.png"
    Image.fromarray(np.full((16, 16), 20_000, dtype=np.uint16)).save(image)
    with pytest.raises(ValueError, match="of mode I;16; save it with 8 bits"):
        of_8_bits(str(image))
    Image.new("RGBA", (4, 4)).save(tmp_path / "flat.png")
    assert of_8_bits(str(tmp_path / "flat.png")) == str(tmp_path / "flat.png")


def test_whatever_a_library_raises_is_a_message(monkeypatch, copied):
    def broken(*args):
        def use(given):
            raise KeyError("a template of its own")

        return use

    monkeypatch.setattr("glora_search.run.predict._load", broken)
    with pytest.raises(UserError, match=r"TEXT: got 'goal'; allowed: .*a template of its own"):
        predict(copied.view, ["goal"])


def test_a_column_that_is_given_twice_is_refused(copied):
    with pytest.raises(UserError, match=r"--set: got 'text=chip'; allowed: each column once; text is 'goal' already"):
        row_of(copied.view, ["text=goal", "text=chip"])


def test_what_looks_like_an_emoji_stays_as_it_is(capsys, copied, call):
    assert not console._emoji
    say("runs/a:key:b")
    assert capsys.readouterr().out == "runs/a:key:b\n"
    assert ":key:" in call("predict", copied.folder, "the :key: goal")[1]
    assert json.loads(call("predict", copied.folder, ":key:", "--json")[1])[0]["input"] == ":key:"
