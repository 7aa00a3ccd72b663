"""GGUF: the student as one file for llama.cpp and what builds on it, written with the `gguf` package alone.

For the Llama, Mistral, Qwen2 and Qwen3 families with a byte-level tokenizer; anything else is refused with a sentence
that names llama.cpp's own converter. Promises weights in 16 bits, each tensor of the model in the file
and none left over, and tokenizer, end token and chat template beside them.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from trainer.merge import load_merged
from trainer.student import Student

FAMILIES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""transformers' name of a family -> gguf's."""
INTERLEAVED = ("llama", "mistral")
"""Families for which llama.cpp rotates neighbouring columns, where transformers rotates two halves."""
FILE = "student.gguf"
MOST_F16 = 65504.0
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {WORDS % "{1,3}": "llama-bpe", WORDS % "": "qwen2"}
"""How a tokenizer cuts texts into words -> llama.cpp's name for it. One sign more would be another way to cut."""
CONTROL, USER_DEFINED, NORMAL, UNUSED = 3, 4, 1, 5
"""Kinds of token. Source: gguf.TokenType."""


def write_gguf(student: Student, folder: Path) -> dict[str, Any]:
    """Write the student as a GGUF file; return what the report says of it.

    Raises: UsageError where this family or tokenizer is left to llama.cpp's converter.
    """
    from transformers import AutoTokenizer

    model = load_merged(student)
    tokenizer = AutoTokenizer.from_pretrained(student.tokenizer)
    _check_family(model.config)
    split = split_rule(json.loads(tokenizer.backend_tokenizer.to_str()))
    tokenizer.save_pretrained(folder)
    writer = _writer(folder / FILE, model.config, student.run.resolve().name)
    _add_tokenizer(writer, tokenizer, folder, split, rows=model.get_input_embeddings().weight.shape[0])
    kind = _number_format(model)
    _add_weights(writer, model, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"file": FILE, "dtype": kind, "tokenizer": split}


def llama_command(file: str, template_kwargs: dict[str, Any]) -> str:
    """Return the command that serves such a file, with the chat template as it was trained."""
    command = ["llama-server", "-m", file]
    if template_kwargs:
        command += ["--jinja", "--chat-template-kwargs", json.dumps(template_kwargs)]
    return shlex.join(command)


def _refuse(why: str) -> UsageError:
    return UsageError(
        f"gguf: {why}; export it as merged, and turn that folder into GGUF with convert_hf_to_gguf.py of llama.cpp"
    )


def _check_family(config: Any) -> None:
    if config.model_type not in FAMILIES:
        raise _refuse(f"no rules here for the {config.model_type} family (only {', '.join(FAMILIES)})")
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise _refuse(f"no rules here for positions scaled by {rope['rope_type']}")
    if config.model_type == "mistral" and config.sliding_window is not None:
        raise _refuse("no rules here for a sliding window")
    if config.model_type == "qwen2" and _head(config) * config.num_attention_heads != config.hidden_size:
        raise _refuse("no rules here for heads that are not as wide together as the model")
    if getattr(config, "use_sliding_window", False):
        raise _refuse("no rules here for a sliding window")


def split_rule(tokenizer: dict[str, Any]) -> str:
    """Return llama.cpp's name for how the tokenizer cuts a text into words, which it cannot read from the file."""
    if tokenizer["model"]["type"] != "BPE" or tokenizer["model"].get("byte_fallback"):
        raise _refuse("no rules here for a tokenizer that is not byte-level BPE")
    steps = tokenizer["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    kinds = [step.get("type") for step in steps]
    if any(step.get("add_prefix_space") for step in steps):
        raise _refuse("no rules here for a tokenizer that puts a space before each text")
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex", "")
        if pattern in PATTERNS and not steps[1].get("use_regex", True):
            return PATTERNS[pattern]
    raise _refuse(f"no rules here for a tokenizer that cuts texts by {' and '.join(map(str, kinds))}")


def _head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _writer(path: Path, config: Any, name: str) -> Any:
    """Return a writer that has the architecture's figures."""
    from gguf import GGUFWriter

    head = _head(config)
    writer = GGUFWriter(path, FAMILIES[config.model_type].lower())
    writer.add_type("model")
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    return writer


def _add_tokenizer(writer: Any, tokenizer: Any, folder: Path, split: str, *, rows: int) -> None:
    """Add tokens, merges, special tokens and chat template; ids that no token has are filled up to the embedding."""
    from gguf import SpecialVocab

    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds = {number: CONTROL if token.special else USER_DEFINED for number, token in added.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([texts.get(number, f"[unused{number}]") for number in range(rows)])
    writer.add_token_types([kinds.get(number, NORMAL if number in texts else UNUSED) for number in range(rows)])
    SpecialVocab(folder, load_merges=True, n_vocab=rows).add_to_gguf(writer, quiet=True)


def _add_weights(writer: Any, model: Any, kind: str) -> None:
    """Add every weight under gguf's name: matrices in 16 bits, vectors in float32."""
    from gguf import MODEL_ARCH, GGMLQuantizationType, LlamaFileType, get_tensor_name_map
    from gguf.quants import quantize

    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind}"])
    family, config = model.config.model_type, model.config
    names = get_tensor_name_map(MODEL_ARCH[FAMILIES[family]], config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise _refuse(f"no rules here for the weight {name}")
        values = weight.float().numpy()
        if family in INTERLEAVED and ".self_attn.q_proj." in name:
            values = _interleave(values, config.num_attention_heads)
        if family in INTERLEAVED and ".self_attn.k_proj." in name:
            values = _interleave(values, config.num_key_value_heads)
        format_ = GGMLQuantizationType["F32" if values.ndim == 1 else kind]
        writer.add_tensor(target, quantize(values, format_), raw_dtype=format_)


def _number_format(model: Any) -> str:
    """Return gguf's name of the weights' number format.

    llama.cpp rounds what it multiplies with a matrix to the matrix's format, and float16 is eight times finer than
    bfloat16; only weights beyond its range need the other.
    """
    widest = max(float(weight.abs().max()) for weight in model.state_dict().values())
    return "F16" if widest <= MOST_F16 else "BF16"


def _interleave(values: Any, heads: int) -> Any:
    """Put the rows of each head's two halves by turns; `values` is (heads * width, ...)."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
