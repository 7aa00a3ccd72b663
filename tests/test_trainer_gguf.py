"""GGUF files against transformers: the same logits in llama.cpp, for each family, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from students import tiny_student, untrained_student

from engine.errors import UsageError
from trainer.gguf_file import FILE, split_rule, write_gguf

pytestmark = pytest.mark.model

TEXT = "<|im_start|>user\nThe capital of country number 345, and 12's   square? Café, naïve\n\n\tdéjà<|im_end|>\n"
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {"num_key_value_heads": 2}),
        ("Mistral", {"num_key_value_heads": 4, "sliding_window": None, "tie_word_embeddings": False}),
        ("Qwen2", {"num_key_value_heads": 2}),
        ("Qwen3", {"num_key_value_heads": 2, "head_dim": 32}),
    ],
)
def test_llama_cpp_computes_the_same(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    import numpy
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_student(tmp_path / "model", kind=kind, initializer_range=0.2, **{**SHAPE, **changes})
    model = AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    model.save_pretrained(folder)
    (tmp_path / "gguf").mkdir()
    assert write_gguf(untrained_student(folder), tmp_path / "gguf")["dtype"] == "F16"
    llama = llama_cpp.Llama(str(tmp_path / "gguf" / FILE), n_ctx=128, logits_all=True, verbose=False)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, add_special_tokens=False)["input_ids"]
    assert llama.tokenize(TEXT.encode(), add_bos=False, special=True) == ids
    assert llama.token_eos() == model.config.eos_token_id
    assert "im_start" in llama.metadata["tokenizer.chat_template"]
    llama.eval(ids)
    wanted = model.float()(torch.tensor([ids])).logits[0].detach().numpy()
    got = numpy.array(llama.scores[: len(ids)])
    assert numpy.abs(got - wanted).max() < 0.02 * numpy.abs(wanted).max()
    llama.close()


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("Gemma", {}, "the gemma family"),
        ("Mistral", {"sliding_window": 128}, "a sliding window"),
        ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "positions scaled by linear"),
    ],
)
def test_what_is_left_to_llama_cpp_is_refused(tmp_path: Path, kind: str, changes: dict[str, Any], says: str) -> None:
    folder = tiny_student(tmp_path / "model", kind=kind, **changes)
    with pytest.raises(UsageError, match=f"{says}.*convert_hf_to_gguf.py of llama.cpp"):
        write_gguf(untrained_student(folder), tmp_path)


QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"type": "Digits", "individual_digits": True}


def byte_level(**changes: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, **changes}


def by_pattern(pattern: str) -> list[dict[str, Any]]:
    return [{"type": "Split", "pattern": {"Regex": pattern}}, byte_level(use_regex=False)]


@pytest.mark.parametrize(
    ("steps", "rule"),
    [
        ([DIGITS, byte_level()], "smollm"),
        ([byte_level()], "gpt-2"),
        (by_pattern(QWEN_2), "qwen2"),
        (by_pattern(QWEN_2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), "llama-bpe"),
    ],
)
def test_the_rule_for_words_is_read_off_the_tokenizer(steps: list[dict[str, Any]], rule: str) -> None:
    tokenizer = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    assert split_rule(tokenizer) == rule


def test_the_pattern_is_the_one_of_the_family() -> None:
    from transformers.models.qwen2 import tokenization_qwen2

    assert tokenization_qwen2.PRETOKENIZE_REGEX == QWEN_2


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([{"type": "Metaspace"}], "cuts texts by Metaspace"),
        # With other letters in its classes, as the tokenizers of GPT-4o and of Mistral Nemo have it.
        (by_pattern(QWEN_2.replace(r"\p{L}+", r"[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+", 1)), "cuts texts by Split and ByteL"),
        ([*by_pattern(QWEN_2)[:1], byte_level()], "cuts texts by Split and ByteLevel"),
        ([byte_level(add_prefix_space=True)], "puts a space before each text"),
    ],
)
def test_another_way_to_cut_texts_is_refused(steps: list[dict[str, Any]], says: str) -> None:
    tokenizer = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    with pytest.raises(UsageError, match=says):
        split_rule(tokenizer)
