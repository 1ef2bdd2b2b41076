"""Tiny models of the architectures that transformers trains, and what Hone can do with each of them."""

from dataclasses import dataclass
from typing import Any

import transformers

VOCABULARY, POSITIONS = 320, 256
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


@dataclass(frozen=True)
class Architecture:
    """A row of the table. `config` names the class of the configuration, `sizes` its arguments.

    `left_out`: the linear layers that targetModules all-linear does not adapt. `unestimated` and `unserved`: a part of
    the reason why memory is not estimated, or why the embedded engine does not serve it; None: it does.
    """

    name: str
    config: str
    sizes: dict[str, Any]
    attention: str = "sdpa"
    left_out: str | None = None
    unestimated: str | None = None
    unserved: str | None = None

    def make_config(self) -> transformers.PreTrainedConfig:
        """Return the configuration of the tiny model."""
        made: Any = getattr(transformers, self.config)
        return made(**{"vocab_size": VOCABULARY, **TOKENS, **self.sizes})


def llama_like(**changed: Any) -> dict[str, Any]:
    """Return the sizes that most decoders name as Llama does."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
    }
    return sizes | changed


def gpt_like(**changed: Any) -> dict[str, Any]:
    """Return the sizes of decoders with as many key heads as heads."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
    } | changed


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}

STATE = "carry state from one token to the next"
PAGES = "can't read keys and values from the pages"

TABLE = [
    Architecture("llama", "LlamaConfig", llama_like()),
    Architecture("llama-tied", "LlamaConfig", llama_like(tie_word_embeddings=True)),
    Architecture("mistral", "MistralConfig", llama_like(sliding_window=None)),
    Architecture("mistral-sliding", "MistralConfig", llama_like(sliding_window=64)),
    Architecture("mixtral", "MixtralConfig", llama_like(num_local_experts=4)),
    Architecture("qwen2", "Qwen2Config", llama_like(tie_word_embeddings=True)),
    Architecture("qwen3", "Qwen3Config", llama_like(head_dim=8)),
    Architecture(
        "qwen2-moe",
        "Qwen2MoeConfig",
        llama_like(**EXPERTS, moe_intermediate_size=32, shared_expert_intermediate_size=32),
    ),
    Architecture("qwen3-moe", "Qwen3MoeConfig", llama_like(**EXPERTS, moe_intermediate_size=32, head_dim=8)),
    Architecture("gemma", "GemmaConfig", llama_like(head_dim=8)),
    Architecture("gemma2", "Gemma2Config", llama_like(head_dim=8), attention="eager"),
    Architecture("gemma3", "Gemma3TextConfig", llama_like(head_dim=8)),
    Architecture("phi", "PhiConfig", llama_like()),
    Architecture("phi3", "Phi3Config", llama_like()),
    Architecture("phimoe", "PhimoeConfig", llama_like(num_local_experts=4)),
    Architecture("gpt2", "GPT2Config", GPT2),
    Architecture("gpt-bigcode", "GPTBigCodeConfig", GPT2),
    Architecture(
        "gpt-neo",
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": POSITIONS,
        },
        attention="eager",
        unserved=PAGES,
    ),
    Architecture("gpt-neox", "GPTNeoXConfig", gpt_like(tie_word_embeddings=False)),
    Architecture("gpt-j", "GPTJConfig", GPT2 | {"rotary_dim": 4}, attention="eager", unserved=PAGES),
    Architecture("codegen", "CodeGenConfig", GPT2 | {"rotary_dim": 4}, attention="eager", unserved=PAGES),
    Architecture(
        "opt",
        "OPTConfig",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": POSITIONS,
            "word_embed_proj_dim": 32,
        },
    ),
    Architecture(
        "bloom", "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, attention="eager", unserved=PAGES
    ),
    Architecture(
        "mpt",
        "MptConfig",
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": POSITIONS},
        attention="eager",
        unserved=PAGES,
    ),
    Architecture(
        "falcon", "FalconConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, unserved=PAGES
    ),
    Architecture("stablelm", "StableLmConfig", llama_like(), unserved=PAGES),
    Architecture("granite", "GraniteConfig", llama_like()),
    Architecture("granitemoe", "GraniteMoeConfig", llama_like(num_local_experts=4, num_experts_per_tok=2)),
    Architecture("smollm3", "SmolLM3Config", llama_like()),
    Architecture("olmo", "OlmoConfig", llama_like()),
    Architecture("olmo2", "Olmo2Config", llama_like()),
    Architecture("olmoe", "OlmoeConfig", llama_like(**EXPERTS)),
    Architecture(
        "gpt-oss",
        "GptOssConfig",
        llama_like(
            num_local_experts=4, num_experts_per_tok=2, head_dim=8, layer_types=["full_attention", "sliding_attention"]
        ),
        attention="eager",
    ),
    Architecture(
        "deepseek-v3",
        "DeepseekV3Config",
        llama_like(
            num_key_value_heads=4,
            n_routed_experts=4,
            n_group=2,
            topk_group=1,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            first_k_dense_replace=1,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
        ),
        unserved="different sizes",
    ),
    Architecture("glm", "GlmConfig", llama_like(head_dim=8)),
    Architecture("glm4", "Glm4Config", llama_like(head_dim=8)),
    Architecture("cohere", "CohereConfig", llama_like()),
    Architecture("cohere2", "Cohere2Config", llama_like()),
    Architecture("starcoder2", "Starcoder2Config", llama_like()),
    Architecture("nemotron", "NemotronConfig", llama_like(), unserved=PAGES),
    Architecture("exaone4", "Exaone4Config", llama_like()),
    Architecture("hunyuan", "HunYuanDenseV1Config", llama_like(head_dim=8)),
    Architecture("ernie4-5", "Ernie4_5Config", llama_like(head_dim=8)),
    Architecture("seed-oss", "SeedOssConfig", llama_like(head_dim=8)),
    Architecture(
        "lfm2",
        "Lfm2Config",
        llama_like(layer_types=["conv", "full_attention"]),
        unestimated=STATE,
        unserved="a state of each request",
    ),
    Architecture(
        "mamba",
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        attention="eager",
        unestimated=STATE,
        left_out="dt_proj, out_proj, x_proj",
        unserved="a state of each request",
    ),
    Architecture(
        "mamba2",
        "Mamba2Config",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "head_dim": 8, "num_heads": 8, "n_groups": 2},
        attention="eager",
        unestimated=STATE,
        left_out="out_proj",
        unserved="a state of each request",
    ),
    Architecture(
        "jamba",
        "JambaConfig",
        llama_like(
            num_experts=2,
            num_experts_per_tok=1,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=4,
            use_mamba_kernels=False,
        ),
        unestimated=STATE,
        left_out="dt_proj",
        unserved="a state of each request",
    ),
    Architecture(
        "recurrent-gemma",
        "RecurrentGemmaConfig",
        llama_like(head_dim=8, lru_width=32, block_types=["recurrent", "attention"], attention_window_size=64),
        unestimated=STATE,
        unserved="a state of each request",
    ),
    Architecture(
        "xlstm",
        "xLSTMConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4},
        attention="eager",
        unestimated=STATE,
        unserved="a state of each request",
    ),
    Architecture(
        "rwkv",
        "RwkvConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "context_length": POSITIONS},
        attention="eager",
        unestimated=STATE,
        unserved="a state of each request",
    ),
]
