"""Causal language models as they come: with a tied head, resized embeddings, in bfloat16, checkpointed, with a device
map."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from glora_search import Recipe, Run, SearchSpace, SupernetConfig
from glora_search.adapters.load import load_adapter
from glora_search.errors import UserError
from glora_search.run import merge
from glora_search.tuners.glora import save_adapter, to_lora, to_stock

NEW = ["<tool>", "<end>"]


@pytest.fixture
def base(tiny, tmp_path):
    """``base(tied=False, resized=False)``: the folder of a tiny Llama."""

    def build(*, tied=False, resized=False):
        folder = tmp_path / "base"
        tokenizer = AutoTokenizer.from_pretrained(tiny("llama"))
        config = LlamaConfig.from_pretrained(tiny("llama"), tie_word_embeddings=tied)
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        if resized:
            tokenizer.add_tokens(NEW)
            model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture
def run(recipe, make, tmp_path):
    """``run(folder, name="run", training={}, **task)``: a run of that base model, with finals and a teacher."""

    def build(folder, name="run", training=None, **task):
        rows = [
            {"text": f"{text} {NEW[n % 2]}", "answer": f"the {label} team"}
            for n, (text, label) in enumerate(make.sentences(30))
        ]
        source = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", rows), "response_column": "answer"}
        made = recipe(folder, source, type="causal-lm", **task)
        made["supernet"]["training"].update(training or {})
        own = {**made.pop("retrain")["training"], **(training or {}), "num_train_epochs": 2}
        made["finals"] = {"subnets": 1, "rates": [1], "methods": ["lora"], "teacher": 2, "training": own}
        made["baselines"] = []
        return Run.create(Recipe.model_validate(made), tmp_path / name)

    return build


BASES = {
    "a tied head": ({"tied": True}, {}),
    "resized embeddings": ({"resized": True}, {}),
    "resized embeddings and a tied head": ({"tied": True, "resized": True}, {}),
    "bfloat16": ({}, {"dtype": "bfloat16"}),
    "bfloat16 and a tied head": ({"tied": True}, {"dtype": "bfloat16"}),
    "packed rows in bfloat16": ({}, {"dtype": "bfloat16", "packing": True}),
    "a device": ({}, {"device_map": "cpu"}),
    "devices that transformers chooses": ({}, {"device_map": "auto"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("made", "task"), BASES.values(), ids=BASES.keys())
def test_a_run_ends_with_a_merged_model_of_the_same_kind(base, run, made, task):
    folder = base(**made)
    done = run(folder, **task)
    metrics = done.all_stages()
    dtype = getattr(torch, task.get("dtype", "float32"))
    assert not any("lm_head" in layer.name for layer in done.context.space.layers)
    for stage in ("supernet", done.view.result("merged")["source"]):
        weights = load_file(done.folder / stage / "adapter_model.safetensors")
        assert not any("lm_head" in name or "embed" in name for name in weights)
        assert {value.dtype for value in weights.values()} == {torch.float32}
        load_adapter(done.context.task.model(), done.folder / stage)

    merged = AutoModelForCausalLM.from_pretrained(done.folder / "merged", dtype="auto")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert merged.dtype == dtype
    assert merged.config.tie_word_embeddings is made.get("tied", False)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) is made.get("tied", False)
    assert ("lm_head.weight" in load_file(done.folder / "merged" / "model.safetensors")) is not made.get("tied", False)
    assert torch.equal(merged.lm_head.weight, plain.lm_head.weight)
    assert torch.equal(merged.model.embed_tokens.weight, plain.model.embed_tokens.weight)
    changed = [name for name, value in merged.named_parameters() if not torch.equal(value, plain.get_parameter(name))]
    assert changed
    rounding = 10 * torch.finfo(dtype).eps
    assert metrics["merged"]["max_abs_logit_difference"] <= rounding
    assert metrics["merged"]["validation"] == pytest.approx(metrics["final"]["validation"], rel=rounding)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")  # peft saves them, too
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_whose_embeddings_were_resized_in_memory_is_saved_loaded_and_merged(base, tied, tmp_path, randomize):
    def resized():
        torch.manual_seed(1)  # of the new rows
        model = LlamaForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(model.config.vocab_size + 5)
        return model.eval()

    folder = base(tied=tied)
    ids = torch.arange(8, 20).reshape(2, 6)
    space = SearchSpace.load("glora").bind(resized())
    configs = {
        "subnet": space.to_config(space.largest, task_type="CAUSAL_LM"),
        "supernet": SupernetConfig(space=space, task_type="CAUSAL_LM"),
    }
    for name, config in configs.items():
        model = randomize(get_peft_model(resized(), config)).eval()
        with torch.no_grad():
            expected = model(input_ids=ids).logits
        model.save_pretrained(tmp_path / name)
        loaded = PeftModel.from_pretrained(resized(), tmp_path / name)
        assert torch.equal(loaded(input_ids=ids).logits, expected)
        if name == "supernet":
            continue
        merged = loaded.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        again = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
        assert again.model.embed_tokens.weight.shape[0] == model.config.vocab_size
        assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied
        torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("convert", [to_lora, to_stock])
@pytest.mark.parametrize("tied", [False, True])
def test_formats_of_plain_peft_have_resized_embeddings_too(base, tied, convert, tmp_path, randomize):
    def resized(seed):
        torch.manual_seed(seed)
        model = LlamaForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(model.config.vocab_size + 5)
        return model.eval()

    folder = base(tied=tied)
    space = SearchSpace.load("lora-ranks").bind(resized(1))
    model = randomize(get_peft_model(resized(1), space.to_config(space.largest, task_type="CAUSAL_LM"))).eval()
    new = torch.arange(model.config.vocab_size - 5, model.config.vocab_size)[None]
    save_adapter(tmp_path / "adapter", *convert(model))
    again = PeftModel.from_pretrained(resized(2), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(input_ids=new).logits, model(input_ids=new).logits)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_gradient_checkpointing_changes_neither_supernet_nor_finalists(base, run, packing):
    folder, found = base(), []
    for checkpointed in (False, True):
        training = {"gradient_checkpointing": checkpointed}
        done = run(folder, f"checkpointed-{checkpointed}", training, packing=packing)
        for stage in ("supernet", "search", "best", "finals"):
            done.do(stage)
        weights = [load_file(done.folder / stage / "adapter_model.safetensors") for stage in ("supernet", "finals")]
        found.append([*weights, done.view.result("finals")["curves"]])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_merged_model_in_bfloat16_that_differs_is_refused(base, run, monkeypatch):
    done = run(base(), dtype="bfloat16")
    for stage in ("supernet", "search", "best", "finals"):
        done.do(stage)
    original = merge.merge

    def broken(model):
        plain = original(model)
        plain.lm_head.weight.data *= 10
        return plain

    monkeypatch.setattr(merge, "merge", broken)
    with pytest.raises(UserError, match=r"does not compute what .* does: logits of up to .* differ by"):
        done.do("merged")


@pytest.mark.parametrize("place", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map_is_passed_on(task, make, monkeypatch, place):
    made, given = task("llama", "causal-lm", make.rows(), device_map=place), []
    original = AutoModelForCausalLM.from_pretrained

    def load(*args, **options):
        given.append(options)
        return original(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    assert made.model().device == torch.device("cpu")
    assert given[0]["device_map"] == place


@pytest.mark.parametrize(
    "place", ["nowhere", "meta", "cuda:99", {"": "nowhere"}, {"": 99}, {"model": "cpu", "x": "tpu"}]
)
def test_a_device_that_is_not_there_is_refused(task, make, place):
    with pytest.raises(UserError, match=r"^task\.device_map: got .*auto, .* or devices of this machine: cpu"):
        task("llama", "causal-lm", make.rows(), device_map=place).model()


def test_a_disk_is_no_device_that_holds_a_model(task, make):
    with pytest.raises(UserError, match=r"^task\.device_map: got .*devices that hold the whole model; .* on disk"):
        task("llama", "causal-lm", make.rows(), device_map={"": "disk"}).model()
