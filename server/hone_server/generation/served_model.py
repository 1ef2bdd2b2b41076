"""Make a served model from a tokenizer and settings: decoding, the tokens that end answers, and the defaults.

In: the tokenizer, generation_config.json and the model's share of an engine. Out: `ServedModel`, which generate.py
answers with. Settings of the model that the engine does not support are logged.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from hone_server.artifacts.sources import ModelEntry
from hone_server.engine.continuous_batching import ModelHandle
from hone_server.engine.penalties import Penalties
from hone_server.engine.sampler import SamplingParams
from hone_server.generation.detokenizer import Decode
from hone_server.generation.generate import ServedModel
from hone_server.generation.prompts import measure_longest_token
from hone_server.protocol.errors import MAX_MESSAGE_CHARACTERS, shorten_text
from hone_server.structured.guidance import GrammarCompiler
from hone_server.structured.tool_formats import ToolCallFormat, detect_tool_call_format

log = logging.getLogger("hone_server")

USED_SETTINGS = frozenset("temperature top_p top_k repetition_penalty max_new_tokens eos_token_id".split())
# Settings that define how transformers computes or returns an answer, or that have an effect only with num_beams.
SETTINGS_WITHOUT_EFFECT = frozenset(
    """bos_token_id pad_token_id decoder_start_token_id transformers_version _from_model_config _commit_hash use_cache
    cache_implementation cache_config max_cache_len return_dict_in_generate output_attentions output_hidden_states
    output_scores output_logits early_stopping length_penalty diversity_penalty num_beam_groups compile_config
    disable_compile continuous_batching_config low_memory prefill_chunk_size is_assistant num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size
    assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight speculation_type use_mtp
    renormalize_logits remove_invalid_values trust_remote_code""".split()
)
SETTINGS_OFF_AT_ONE = frozenset(
    "typical_p encoder_repetition_penalty num_beams guidance_scale num_return_sequences".split()
)


@dataclass(frozen=True)
class ChatOptions:
    """Settings that replace those of every model: a chat template, and how it writes tool calls."""

    chat_template: str | None = None
    tool_call_format: ToolCallFormat | None = None


AS_TRAINED = ChatOptions()


def make_served_model(
    entry: ModelEntry,
    tokenizer: Any,
    handle: ModelHandle,
    default_params: SamplingParams,
    chat_options: ChatOptions = AS_TRAINED,
    default_max_tokens: int | None = None,
) -> ServedModel:
    """Return the model. Its chat template shows how it writes tool calls, unless `chat_options` has the format."""
    if chat_options.chat_template is not None:
        tokenizer.chat_template = chat_options.chat_template
    if (size := len(tokenizer)) > handle.vocab_size:
        text = "%s: the tokenizer has %d tokens, and the model %d: prompts with one of the others are refused"
        log.warning(text, entry.name, size, handle.vocab_size)
    return ServedModel(
        entry,
        tokenizer,
        decode=_make_decoder(tokenizer, skip_special_tokens=True),
        decode_with_special=_make_decoder(tokenizer, skip_special_tokens=False),
        decode_token=_make_token_decoder(tokenizer),
        handle=handle,
        default_params=default_params,
        max_token_characters=measure_longest_token(tokenizer),
        grammar_compiler=GrammarCompiler(tokenizer, handle.eos_token_ids, handle.vocab_size),
        tool_call_format=chat_options.tool_call_format or detect_tool_call_format(_get_tool_template(tokenizer)),
        default_max_tokens=default_max_tokens,
    )


def _get_tool_template(tokenizer: Any) -> str | None:
    """Return the chat template for requests with tools; a model may have several."""
    template = tokenizer.chat_template
    return template.get("tool_use", template.get("default")) if isinstance(template, dict) else template


def read_eos_token_ids(generation_config: Any, tokenizer: Any, vocab_size: int) -> frozenset[int]:
    """Return the tokens that end an answer, as far as they are in the model's vocabulary."""
    ids = generation_config.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    named = {one for one in [*listed, tokenizer.eos_token_id] if one is not None}
    if beyond := sorted(one for one in named if not 0 <= one < vocab_size):
        log.warning("token %d is to end answers, and is not in the vocabulary of %d tokens", beyond[0], vocab_size)
    return frozenset(named.difference(beyond))


def _make_decoder(tokenizer: Any, *, skip_special_tokens: bool) -> Decode:
    """Return the tokenizer's own decoding, if possible without transformers' layer: it runs at every token."""
    return partial(getattr(tokenizer, "backend_tokenizer", tokenizer).decode, skip_special_tokens=skip_special_tokens)


def _make_token_decoder(tokenizer: Any) -> Decode:
    """Return a decoder of tokens in the middle of a text.

    It decodes them after a letter, because some decoders drop the space at the beginning.
    """
    decode = partial(getattr(tokenizer, "backend_tokenizer", tokenizer).decode, skip_special_tokens=False)
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = len(decode(letter))
    return lambda tokens: decode([*letter, *tokens])[start:]


def read_default_params(config: Any) -> SamplingParams:
    """Return the model's own sampling settings, or OpenAI's where it has none."""
    return SamplingParams(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        seed=0,
        penalties=Penalties(repetition=config.repetition_penalty or 1.0),
    )


def read_default_max_tokens(config: Any) -> int | None:
    """Return the model's own length of answers, or None if it has none."""
    length = config.max_new_tokens
    return length if isinstance(length, int) and length > 0 else None


def find_unused_settings(config: Any) -> dict[str, Any]:
    """Return the settings of a model's generation_config.json that would change its answers and are not supported."""
    return {
        name: value
        for name, value in sorted(config.to_diff_dict().items())
        if name not in USED_SETTINGS | SETTINGS_WITHOUT_EFFECT
        and (value is False if name == "do_sample" else value and not (name in SETTINGS_OFF_AT_ONE and value == 1))
    }


def warn_unused_settings(name: str, config: Any) -> None:
    """Log one line with the model's own settings that the engine ignores."""
    if unused := find_unused_settings(config):
        found = ", ".join(f"{setting} {value!r}" for setting, value in unused.items())
        log.warning(
            "%s: the model's generation_config.json has settings that the embedded engine does not support, and that "
            "are left out: %s",
            name,
            shorten_text(found, MAX_MESSAGE_CHARACTERS),
        )
