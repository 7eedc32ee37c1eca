"""Tiny decoders of many families, each with what is peculiar to its attention turned on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

WINDOW = {"sliding_window": 3}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
EXPERTS |= {"shared_expert_intermediate_size": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
_SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
}
# Each removes a feature; the same weights must then compute something else.
NO_WINDOW = {"sliding_window": 60}


@dataclass(frozen=True)
class Family:
    """A family's settings beside the common sizes.

    Attributes:
        settings: with its features.
        without: for each feature that reaches attention or logits, the settings that take it away.
        fixed: common sizes that its config can't hold.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[Mapping[str, Any], ...] = ()
    fixed: tuple[str, ...] = ()

    def decoder(self, name: str, **changes: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        sizes = {key: value for key, value in _SIZES.items() if key not in self.fixed}
        config = CONFIG_MAPPING[name](**{**sizes, **self.settings, **changes})
        decoder: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
        return decoder


PACKED = {
    "llama": Family({"rope_parameters": {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0,
                     "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
                    ({"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},)),
    "qwen2": Family({"use_sliding_window": True, "max_window_layers": 1, **WINDOW}, (NO_WINDOW,)),
    "qwen3": Family({"use_sliding_window": True, "max_window_layers": 1, **WINDOW}, (NO_WINDOW,)),
    "qwen3_moe": Family({"use_sliding_window": True, "max_window_layers": 0, **WINDOW, **EXPERTS}, (NO_WINDOW,)),
    "mistral": Family(WINDOW, (NO_WINDOW,)),
    "mixtral": Family({**WINDOW, **EXPERTS}, (NO_WINDOW,)),
    "gemma": Family(),
    "gemma2": Family(
        {**WINDOW, **ALTERNATING, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
        (NO_WINDOW, {"attn_logit_softcapping": None}, {"final_logit_softcapping": None}),
    ),
    "gemma3_text": Family({**WINDOW, **ALTERNATING, "query_pre_attn_scalar": 30},
                          (NO_WINDOW, {"query_pre_attn_scalar": 8})),
    "phi": Family({"partial_rotary_factor": 0.5}),
    "phi3": Family(WINDOW, (NO_WINDOW,)),
    "gpt2": Family({**GPT, "scale_attn_by_inverse_layer_idx": True}, ({"scale_attn_by_inverse_layer_idx": False},)),
    "gpt_bigcode": Family({**GPT, "multi_query": True}),
    "gpt_neox": Family({"use_parallel_residual": True}, ({"use_parallel_residual": False},)),
    "opt": Family({"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "olmo2": Family(),
    "olmo3": Family({**WINDOW, **ALTERNATING}, (NO_WINDOW,)),
    "granite": Family({"attention_multiplier": 0.9, "logits_scaling": 3.0},
                      ({"attention_multiplier": 0.1}, {"logits_scaling": 1.0})),
    "glm": Family(),
    "glm4": Family(),
    "cohere": Family({"logit_scale": 0.5}, ({"logit_scale": 1.0},)),
    "cohere2": Family({**WINDOW, **ALTERNATING}, (NO_WINDOW,)),
    "exaone4": Family({**WINDOW, **ALTERNATING}, (NO_WINDOW,)),
    "smollm3": Family({"no_rope_layers": [1, 0]}, ({"no_rope_layers": [1, 1]},)),
    "starcoder2": Family(WINDOW, (NO_WINDOW,)),
    "deepseek_v3": Family({**EXPERTS, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "head_dim": 4,
                           "qk_nope_head_dim": 4, "v_head_dim": 6, "num_key_value_heads": 4,
                           "first_k_dense_replace": 1}),
    "seed_oss": Family(),
    "arcee": Family(),
    "persimmon": Family({"num_key_value_heads": 4}),
    "ernie4_5": Family(),
    "hunyuan_v1_dense": Family(),
    "biogpt": Family(),
}  # fmt: skip
"""Families that compute the same in a pack."""

NOT_PACKED = {
    "bloom": (Family(GPT), "0 of its 2 layers"),
    "falcon": (Family({"alibi": True, "new_decoder_architecture": False}, fixed=("head_dim",)), "0 of its 2 layers"),
    "stablelm": (Family(), "called without trees"),
    "nemotron": (Family(), "called without trees"),
    "qwen3_next": (Family({**EXPERTS, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
                           "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}),
                   "1 of its 2 layers"),
    "gpt_oss": (Family({**WINDOW, **EXPERTS, **ALTERNATING}), "hands attention s_aux"),
    "gptj": (Family({**GPT, "rotary_dim": 4}), "0 of its 2 layers"),
    "codegen": (Family({**GPT, "rotary_dim": 4, "n_ctx": 64}), "0 of its 2 layers"),
    "gpt_neo": (Family({"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                        "window_size": 3}), "0 of its 2 layers"),
    "mpt": (Family({"d_model": 32, "n_layers": 2, "n_heads": 4}), "0 of its 2 layers"),
    "mamba": (Family({"state_size": 4}), "0 of its 2 layers"),
    "jamba": (Family({**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}),
              "1 of its 2 layers"),
    "llama4_text": (Family({**EXPERTS, "attention_chunk_size": 3, "intermediate_size_mlp": 48}), r"windows of \[3\]"),
    "lfm2": (Family({"layer_types": ["conv", "full_attention"]}), "1 of its 2 layers"),
    "phimoe": (Family({**WINDOW, **EXPERTS}), r"windows of \[3\] tokens, its layers ask for none"),
    "minimax": (Family(EXPERTS), "1 of its 2 layers"),
    "xglm": (Family({"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}), "0 of its 2 layers"),
}  # fmt: skip
"""Families that don't, or that don't go by transformers' interface, and the reason that the probe gives."""
