from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from students import tiny_student

from engine.config import Student
from engine.errors import ConfigError, MissingError
from trainer.importance import block_influence, most_influential
from trainer.prune import check_student, choose_layers, prune


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


def silenced(folder: Path, target: Path, layer: int) -> Path:
    """Copy a model, with one layer that adds nothing to what passes through it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    silent = model.model.layers[layer]
    silent.self_attn.o_proj.weight.data.zero_()
    silent.mlp.down_proj.weight.data.zero_()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


@pytest.mark.model
def test_the_layers_that_change_most_are_kept(tmp_path: Path) -> None:
    whole = silenced(tiny_student(tmp_path / "whole", layers=5), tmp_path / "silenced", 2)
    rows = [[10, 20, 30 + number] * 9 for number in range(300)]
    made = prune(str(whole), tmp_path / "cut", 4, rows)
    assert made.layers == (0, 1, 3, 4)
    assert made.influence[2] == pytest.approx(0, abs=1e-6)
    assert min(made.influence[layer] for layer in made.layers) > 1e-4
    assert prune(str(whole), tmp_path / "again", 4, rows).influence == made.influence
    # A layer that adds nothing is missed by nobody.
    assert (logits(tmp_path / "cut") - logits(whole)).abs().max() < 1e-5


@pytest.mark.model
def test_influence_is_one_minus_the_mean_cosine(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_student(tmp_path, layers=3)).eval()
    rows = [list(range(5, 25)), list(range(40, 47))]
    states = [model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states for row in rows]
    expected = []
    for layer in (0, 1):  # behind the last one, the library shows only the normalised state
        pairs = [torch.cosine_similarity(state[layer][0], state[layer + 1][0], dim=-1) for state in states]
        expected.append(1 - torch.cat(pairs).mean().item())
    assert block_influence(model, model.model.layers, rows)[:2] == pytest.approx(expected, abs=1e-6)


def test_equal_influence_keeps_the_lower_layer() -> None:
    assert most_influential([0.1, 0.5, 0.1, 0.3], 3) == (0, 1, 3)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"layers": 1}, "student.layers cuts nothing"),
        ({"layers_by": "importance"}, "student.layers_by = importance cuts nothing"),
        ({"init": "prune", "layers_by": "importance", "layers": (0, 1)}, "has none to choose"),
    ],
)
def test_keys_about_layers_that_do_nothing_are_a_sentence(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_student(Student(**keys))
    check_student(Student(init="prune", layers_by="importance", layers=2))


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
