from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from glora_search import SupernetConfig
from glora_search.errors import UserError
from glora_search.files.shipped import shipped_folder
from glora_search.space.schema import Choices, SearchSpace

SHIPPED = sorted(file.stem for file in shipped_folder("search_spaces").glob("*.yaml"))


ARCHITECTURES = ["bert", "llama", "gpt2"]


LAYERS = {"bert": 12, "llama": 14, "gpt2": 8}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_shipped_space_loads_and_binds_to_every_architecture(name, architecture, bind, make_model):
    space, model = bind(name, architecture), make_model(architecture)
    assert space.name == name
    assert len(space.layers) == LAYERS[architecture]
    assert all("pooler" not in layer.name for layer in space.layers)
    for layer in space.layers:
        module = model.get_submodule(layer.name)
        assert layer.has_bias == (module.bias is not None)
        shape = (layer.in_features, layer.out_features)
        assert tuple(module.weight.shape) == (shape if architecture == "gpt2" else shape[::-1])


def test_an_override_changes_the_layers_of_its_pattern_only(bind):
    space = bind("odd")
    layers = {layer.name: layer.settings for layer in space.layers}
    prefix = "bert.encoder.layer."
    plain = {
        "A": ("vector", "lora", "none"),
        "B": ("lora",),
        "C": ("vector", "none"),
        "D_E": ("constant", "vector"),
        "r": (0, 1, 3),
    }
    assert layers[prefix + "0.attention.self.query"] == plain
    assert layers[prefix + "1.attention.self.query"] == plain
    assert layers[prefix + "0.output.dense"] == plain
    tied = {"A_B": ("lora", "constant"), "C": ("vector", "none"), "D_E": ("constant", "vector"), "r": (2,)}
    assert layers[prefix + "0.attention.self.value"] == layers[prefix + "1.attention.self.value"] == tied
    assert layers[prefix + "1.output.dense"] == {**plain, "D_E": ("none",), "r": (4, 5)}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"targets": ["nothing"]}, ["space.targets", "['nothing']", "bert.encoder.layer.0.attention.self.query"]),
        ({"exclude": ".*"}, ["space.targets", "'all-linear'", "exclude is '.*'"]),
        ({"targets": ["word_embeddings"]}, ["bert.embeddings.word_embeddings", "'Embedding'", "Linear", "Conv1D"]),
    ],
)
def test_a_space_that_fits_no_layer_of_the_model_is_refused(options, parts, bind):
    with pytest.raises(UserError) as error:
        bind(SearchSpace(paths={"B": ["lora"]}, **options))
    for part in parts:
        assert part in str(error.value)


def test_targets_and_exclude_have_pefts_semantics(bind, make_model):
    options: dict[str, Any] = {"targets": r".*layer\.1\..*(query|key)", "exclude": ["self.key"]}
    space = bind(SearchSpace(paths={"B": ["lora"]}, **options))
    lora = peft.LoraConfig(target_modules=options["targets"], exclude_modules=options["exclude"])
    model = get_peft_model(make_model("bert"), lora)
    assert [layer.name for layer in space.layers] == model.targeted_module_names


SIZE = {"vocab_size": 50, "num_labels": 3}


BERT_SIZE = {**SIZE, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


CLASSIFIERS = {
    "RoBERTa": (RobertaForSequenceClassification, RobertaConfig(**BERT_SIZE, pad_token_id=0), 6),
    "ELECTRA": (ElectraForSequenceClassification, ElectraConfig(**BERT_SIZE, embedding_size=16), 6),
    "DistilBERT": (DistilBertForSequenceClassification, DistilBertConfig(**SIZE, dim=16, n_layers=1, n_heads=2), 6),
    "DeBERTa": (DebertaV2ForSequenceClassification, DebertaV2Config(**BERT_SIZE), 6),
}


@pytest.mark.parametrize(("model_cls", "config", "layers"), CLASSIFIERS.values(), ids=CLASSIFIERS.keys())
def test_a_classifier_of_several_layers_is_the_head_and_is_not_adapted(model_cls, config, layers):
    model = model_cls(config)
    space = SearchSpace.load("glora").bind(model)
    assert len(space.layers) == layers
    assert not any("classifier" in layer.name for layer in space.layers)
    assert any("query+value" in name for name in space.uniform_methods())
    supernet = get_peft_model(model, SupernetConfig(space=space, task_type="SEQ_CLS"))
    with torch.no_grad():
        assert supernet(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3)


def test_an_override_that_matches_no_layer_is_refused(make_model):
    space = SearchSpace(paths={"B": ["lora", "none"]}, overrides={"qeury": Choices(ranks=[1])})
    with pytest.raises(UserError, match="qeury"):
        space.bind(make_model("bert"))


def test_a_space_counts_no_layer_that_peft_takes_for_a_module_to_save():
    # peft reads a name in modules_to_save as a pattern, whose dot stands for any character.
    model = nn.ModuleDict({"a": nn.ModuleDict({"q": nn.Linear(2, 2)}), "a_q": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    space = SearchSpace(paths={"B": ["lora", "none"]})
    assert [layer.name for layer in space.bind(model, ["a.q"]).layers] == ["b"]
    supernet = get_peft_model(model, SupernetConfig(space=space, modules_to_save=["a.q"]))
    assert set(supernet.layers()) == {"b"}


def test_the_head_of_a_question_answering_model_is_trained_as_it_is():
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    model = get_peft_model(BertForQuestionAnswering(config), SupernetConfig(space="glora", task_type="QUESTION_ANS"))
    assert not any("qa_outputs" in layer.name for layer in model.space.layers)
    assert any("qa_outputs.modules_to_save" in name for name, value in model.named_parameters() if value.requires_grad)


def tied_llama() -> nn.Module:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True))


def masked_bert() -> nn.Module:
    return BertForMaskedLM(BertConfig(**BERT_SIZE))


class Twice(nn.Module):
    """One layer under two names: peft would adapt the first alone, and merging would change both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(3, 3)


class Repeated(nn.Module):
    """A block that stands several times in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 3))] * 2)


SHARED = {
    "a tied head": (tied_llama, ["q_proj", "lm_head"], "lm_head.weight", "model.embed_tokens.weight"),
    "a masked language model's head": (
        masked_bert, ["decoder"], "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight",
    ),
    "a layer under two names": (Twice, "all-linear", "first.weight", "second.weight"),
    "a repeated block": (Repeated, "all-linear", "blocks.0.0.weight", "blocks.1.0.weight"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "targets", "own", "other"), SHARED.values(), ids=SHARED.keys())
def test_a_layer_whose_weight_another_module_shares_is_refused_with_both_names(make, targets, own, other):
    layer = own.rpartition(".")[0]
    space = SearchSpace(targets=targets, paths={"B": ["lora", "none"]})
    with pytest.raises(UserError) as error:
        space.bind(make())
    for part in ("space.targets", f"{own} is {other} too", f"set space.exclude to [{layer}]"):
        assert part in str(error.value)


def test_without_the_shared_layer_the_space_binds():
    space = SearchSpace(targets=["q_proj", "lm_head"], exclude=["lm_head"], paths={"B": ["lora", "none"]})
    assert [layer.name for layer in space.bind(tied_llama()).layers] == ["model.layers.0.self_attn.q_proj"]
    assert len(SearchSpace.load("glora").bind(tied_llama()).layers) == 7  # all-linear leaves the head out


def test_a_layer_that_is_used_several_times_is_adapted_each_time_and_merges_exactly(randomize):
    config = AlbertConfig(**{**BERT_SIZE, "num_hidden_layers": 3}, embedding_size=8)
    model, ids = AlbertForSequenceClassification(config).eval().double(), torch.tensor([[1, 2, 3]])
    space = SearchSpace.load("glora").bind(model)
    assert sum("albert_layers" in layer.name for layer in space.layers) == 6  # of the one block that all layers are
    adapted = randomize(get_peft_model(model, space.to_config(space.largest, task_type="SEQ_CLS"))).eval()
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        torch.testing.assert_close(adapted.merge_and_unload()(input_ids=ids).logits, expected)


def test_a_layer_that_pefts_lora_refuses_is_refused_with_the_way_out():
    model = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(UserError, match=r"space\.targets.*Mamba.s kernels.*space\.exclude to \[out_proj\]"):
        SearchSpace.load("glora-ranks").bind(model)


def test_a_space_that_is_bound_to_another_model_is_refused():
    def bert(**sizes):
        return BertForMaskedLM(BertConfig(**{**BERT_SIZE, "num_hidden_layers": 2, **sizes}))

    space = SearchSpace.load("glora").bind(bert())
    for sizes, words in (
        ({"hidden_size": 32}, r"where .*query has 16 inputs, 16 outputs, and a bias'; allowed: .* it has 32 inputs"),
        ({"num_hidden_layers": 1}, r"a model with bert\.encoder\.layer\.1\."),
    ):
        with pytest.raises(UserError, match=rf"^space: got 'glora.*{words}"):
            get_peft_model(bert(**sizes), SupernetConfig(space=space))


def test_a_space_without_a_parameter_on_this_model_is_refused(make_model):
    with pytest.raises(UserError, match=r"^space\.paths: got .*no layer has a bias, so that none has C, D or E"):
        SearchSpace(paths={"E": ["vector", "none"]}).bind(make_model("llama"))
    with pytest.raises(UserError, match=r"^space\.paths: got .*paths that add parameters to this Bert"):
        SearchSpace(paths={"E": ["none"]}).bind(make_model("bert"))


class OwnLinear(nn.Linear):
    """A linear layer of a model's own, as Falcon's are."""


def test_layers_of_a_kind_of_their_own_are_refused_with_a_name_that_leaves_out_all_of_them():
    model = nn.ModuleDict({str(n): nn.ModuleDict({"qkv": OwnLinear(4, 4), "out": nn.Linear(4, 4)}) for n in range(3)})
    with pytest.raises(UserError, match=r"set space\.exclude to \[qkv\]"):
        SearchSpace(targets=["qkv", "out"], paths={"B": ["lora", "none"]}).bind(model)
    space = SearchSpace(targets=["qkv", "out"], exclude=["qkv"], paths={"B": ["lora", "none"]})
    assert [layer.name for layer in space.bind(model).layers] == ["0.out", "1.out", "2.out"]
