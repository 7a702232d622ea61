"""TRL's SFTTrainer trains adapters and supernets of this package."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from glora_search import GLoraConfig, SamplingCallback, SearchSpace, SizeSampling, SupernetConfig

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c"]


@pytest.fixture
def trainer(make_model, tmp_path):
    """``trainer(config, **options)``: an SFTTrainer of a tiny Llama; a supernet is put into the model first."""
    trl = pytest.importorskip("trl")
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    rows = Dataset.from_dict({"text": ["a b c a", "b c a b"] * 4})

    def make(config, **options):
        args = trl.SFTConfig(
            str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to=[]
        )
        model = make_model("llama")
        if isinstance(config, SupernetConfig):
            model = get_peft_model(model, config)
        else:
            options["peft_config"] = config
        return trl.SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, **options)

    return make


@pytest.mark.parametrize(
    "config",
    [
        GLoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
        SupernetConfig(space=SearchSpace.load("glora"), task_type="CAUSAL_LM"),
    ],
    ids=["adapter", "supernet"],
)
def test_sft_trainer_trains_it_and_leaves_the_base_frozen(trainer, config):
    made = trainer(config)
    before = {name: value.clone() for name, value in made.model.named_parameters()}
    made.train()
    changed = {name for name, value in made.model.named_parameters() if not torch.equal(before[name], value)}
    assert changed
    assert all(".glora_" in name or ".supernet_" in name for name in changed)


def test_sft_trainer_trains_another_subnet_at_each_step(trainer, bind):
    space = bind("glora", "llama")
    callback, activated = SamplingCallback(SizeSampling(space)), []
    made = trainer(SupernetConfig(space=space, task_type="CAUSAL_LM"), callbacks=[callback])
    made.model.base_model.register_forward_pre_hook(lambda module, args: activated.append(dict(module.active_genome)))
    made.train()
    assert activated == [callback.sampling(0)[0], callback.sampling(1)[0]]
