from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from students import tiny_student

from engine.errors import ConfigError, MissingError
from trainer.prune import choose_layers, prune


@given(st.integers(2, 80), st.data())
def test_evenly_spaced_layers_keep_both_ends(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, total))
    kept = choose_layers(total, count)
    gaps = {after - before for before, after in pairwise(kept)}
    assert len(kept) == count
    assert (kept[0], kept[-1]) == (0, total - 1)
    assert max(gaps) - min(gaps) <= 1


def test_layers_by_default_and_by_number() -> None:
    assert choose_layers(30, None) == choose_layers(30, 15)
    assert choose_layers(7, 1) == (0,)
    assert choose_layers(7, (1, 4, 6)) == (1, 4, 6)


@pytest.mark.parametrize(
    ("layers", "says"), [(9, "the model has 8"), ((0, 8), "0 to 7"), ((3, 1), "rising"), ((), "0 to 7")]
)
def test_layers_that_do_not_fit_are_a_sentence(layers: int | tuple[int, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose_layers(8, layers)


def logits(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(20).unsqueeze(0)).logits


@pytest.mark.model
def test_with_all_layers_nothing_changes(tmp_path: Path) -> None:
    import torch

    whole = tiny_student(tmp_path / "whole", layers=3)
    made = prune(str(whole), tmp_path / "cut", 3)
    assert made.parameters == made.of_parameters
    assert torch.equal(logits(whole), logits(tmp_path / "cut"))


@pytest.mark.model
def test_kept_weights_are_the_model_s_own(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole = tiny_student(tmp_path / "whole", layers=5)
    made = prune(str(whole), tmp_path / "cut", (0, 2, 4))
    before = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "cut").state_dict()
    for key, weight in after.items():
        source = key
        for new, old in enumerate(made.layers):
            source = key.replace(f"layers.{new}.", f"layers.{old}.") if f"layers.{new}." in key else source
        assert torch.equal(weight, before[source]), key
    layer = sum(weight.numel() for key, weight in before.items() if ".layers.0." in key)
    assert made.of_parameters - made.parameters == 2 * layer
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "cut")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(whole).chat_template
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.model
def test_per_layer_lists_are_cut_too(tmp_path: Path) -> None:
    from transformers import AutoConfig

    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    whole = tiny_student(
        tmp_path / "whole", kind="Qwen3", layers=4, layer_types=kinds, use_sliding_window=True, sliding_window=8
    )
    prune(str(whole), tmp_path / "cut", (0, 1, 3))
    config = AutoConfig.from_pretrained(tmp_path / "cut")
    assert config.num_hidden_layers == 3
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert logits(tmp_path / "cut").shape[-1] == config.vocab_size


@pytest.mark.model
def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    whole = tiny_student(tmp_path / "llama")
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=100)).save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(whole).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel\) has no plain list of decoder layers"):
        prune(str(tmp_path / "gpt2"), tmp_path / "cut", 1)
    assert not (tmp_path / "cut").exists()


@pytest.mark.model
def test_layers_that_differ_by_their_number_are_refused(tmp_path: Path) -> None:
    whole = tiny_student(
        tmp_path / "whole", kind="Qwen3Moe", layers=4, decoder_sparse_step=2, num_experts=2, moe_intermediate_size=16
    )
    with pytest.raises(ConfigError, match="differ from each other in ways its configuration does not list"):
        prune(str(whole), tmp_path / "cut", (0, 2, 3))


@pytest.mark.model
def test_a_broken_model_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(MissingError, match=r"student\.model: .* does not load"):
        prune(str(tmp_path), tmp_path / "cut", 1)
