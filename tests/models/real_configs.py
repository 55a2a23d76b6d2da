"""config.json contents in the spelling of published checkpoints (transformers 4), for make_golden.py.

They need not be any checkpoint's to the digit: what counts is that transformers reads each in its own way.
"""

from __future__ import annotations


def _config(model_type, hidden, heads, kv_heads, intermediate, layers, vocab, context, **more) -> dict:
    return dict(
        model_type=model_type, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=intermediate, num_hidden_layers=layers, vocab_size=vocab, max_position_embeddings=context,
        torch_dtype="bfloat16", **more,
    )  # fmt: skip


def _small(**more) -> dict:
    return _config("llama", 512, 8, 4, 1024, 2, 1000, 4096, rms_norm_eps=1e-5, **more)


SHORT = [1.0 + 0.03 * i for i in range(48)]
LONG = [1.05 + 1.3 * i for i in range(48)]
LLAMA3 = dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192,
              rope_type="llama3")  # fmt: skip
QWEN_WINDOW = dict(use_sliding_window=False, rms_norm_eps=1e-6, hidden_act="silu", bos_token_id=151643,
                   eos_token_id=151645)  # fmt: skip
PHI = dict(rms_norm_eps=1e-5, hidden_act="silu", attention_bias=False, bos_token_id=1, eos_token_id=32000)
GEMMA = dict(head_dim=256, rms_norm_eps=1e-6, hidden_activation="gelu_pytorch_tanh", bos_token_id=2)
YARN = dict(rope_type="yarn", factor=16.0, original_max_position_embeddings=256)

REAL = {
    "llama-1": dict(
        model_type="llama", hidden_size=4096, num_attention_heads=32, intermediate_size=11008, num_hidden_layers=32,
        vocab_size=32000, rms_norm_eps=1e-6, hidden_act="silu", bos_token_id=1, eos_token_id=2,
    ),
    "llama-2": _config("llama", 4096, 32, 32, 11008, 32, 32000, 4096, rms_norm_eps=1e-5, rope_scaling=None,
                       pretraining_tp=1, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False),
    "llama-3.2-1b": _config("llama", 2048, 32, 8, 8192, 16, 128256, 131072, head_dim=64, rms_norm_eps=1e-5,
                            rope_theta=500000.0, rope_scaling=LLAMA3, tie_word_embeddings=True, bos_token_id=128000,
                            eos_token_id=[128001, 128008, 128009], attention_bias=False, mlp_bias=False),
    "llama-3.1-8b": _config("llama", 4096, 32, 8, 14336, 32, 128256, 131072, rms_norm_eps=1e-5, rope_theta=500000.0,
                            rope_scaling={**LLAMA3, "factor": 8.0}, bos_token_id=128000, eos_token_id=128009),
    "smollm2-135m": _config("llama", 576, 9, 3, 1536, 30, 49152, 8192, rms_norm_eps=1e-5, rope_theta=100000,
                            rope_interleaved=False, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2),
    "mistral-v0.1": _config("mistral", 4096, 32, 8, 14336, 32, 32000, 32768, rms_norm_eps=1e-5, rope_theta=10000.0,
                            sliding_window=4096),
    "mistral-v0.3": _config("mistral", 4096, 32, 8, 14336, 32, 32768, 32768, rms_norm_eps=1e-5, rope_theta=1e6,
                            sliding_window=None),
    "mistral-nemo": _config("mistral", 5120, 32, 8, 14336, 40, 131072, 1024000, head_dim=128, rms_norm_eps=1e-5,
                            rope_theta=1e6, sliding_window=None),
    "qwen2.5-0.5b": _config("qwen2", 896, 14, 2, 4864, 24, 151936, 32768, rope_theta=1e6, tie_word_embeddings=True,
                            sliding_window=32768, max_window_layers=24, **QWEN_WINDOW),
    "qwen2.5-7b-yarn": _config("qwen2", 3584, 28, 4, 18944, 28, 152064, 32768, rope_theta=1e6, sliding_window=131072,
                               max_window_layers=28, **QWEN_WINDOW,
                               rope_scaling=dict(factor=4.0, original_max_position_embeddings=32768, type="yarn")),
    "qwen2-windows": _config("qwen2", 896, 14, 2, 4864, 24, 151936, 32768, sliding_window=4096, max_window_layers=21,
                             **{**QWEN_WINDOW, "use_sliding_window": True}),
    "qwen3-0.6b": _config("qwen3", 1024, 16, 8, 3072, 28, 151936, 40960, head_dim=128, rope_theta=1e6,
                          attention_bias=False, tie_word_embeddings=True, max_window_layers=28, **QWEN_WINDOW),
    "phi-3-mini-4k": _config("phi3", 3072, 32, 32, 8192, 32, 32064, 4096, rope_theta=10000.0, rope_scaling=None,
                             original_max_position_embeddings=4096, sliding_window=2047, **PHI),
    "phi-3-mini-128k": _config("phi3", 3072, 32, 32, 8192, 32, 32064, 131072, sliding_window=262144, rope_theta=10000.0,
                               original_max_position_embeddings=4096, **PHI,
                               rope_scaling=dict(type="longrope", short_factor=SHORT, long_factor=LONG)),
    "phi-4-mini": _config("phi3", 3072, 24, 8, 8192, 32, 200064, 131072, partial_rotary_factor=0.75,
                          original_max_position_embeddings=4096, sliding_window=262144, rope_theta=10000.0,
                          tie_word_embeddings=True, **{**PHI, "eos_token_id": 199999},
                          rope_scaling=dict(type="longrope", short_factor=SHORT, long_factor=LONG)),
    "gemma-2-2b": _config("gemma2", 2304, 8, 4, 9216, 26, 256000, 8192, hidden_act="gelu_pytorch_tanh",
                          attn_logit_softcapping=50.0, final_logit_softcapping=30.0, query_pre_attn_scalar=256,
                          rope_theta=10000.0, sliding_window=4096, eos_token_id=[1, 107], **GEMMA),
    "gemma-2-27b": _config("gemma2", 4608, 32, 16, 36864, 46, 256000, 8192, query_pre_attn_scalar=144, eos_token_id=1,
                           **{**GEMMA, "head_dim": 128}),
    "gemma-3-1b": _config("gemma3_text", 1152, 4, 1, 6912, 26, 262144, 32768, query_pre_attn_scalar=256,
                          rope_theta=1000000, rope_local_base_freq=10000, rope_scaling=None, sliding_window=512,
                          sliding_window_pattern=6, eos_token_id=[1, 106], **GEMMA),
    "gemma-3-4b": dict(
        model_type="gemma3", eos_token_id=[1, 106], boi_token_index=255999, image_token_index=262144,
        text_config=dict(model_type="gemma3_text", hidden_size=2560, intermediate_size=10240, num_hidden_layers=34,
                         rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024),
        vision_config=dict(model_type="siglip_vision_model"),
    ),
    "mixtral-8x7b": _config("mixtral", 4096, 32, 8, 14336, 32, 32000, 32768, rms_norm_eps=1e-5, rope_theta=1e6,
                            sliding_window=None, num_local_experts=8, num_experts_per_tok=2),
    "qwen3-30b-a3b": _config("qwen3_moe", 2048, 32, 4, 6144, 48, 151936, 40960, head_dim=128, rope_theta=1e6,
                             moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True,
                             decoder_sparse_step=1, mlp_only_layers=[], sliding_window=None, attention_bias=False,
                             **QWEN_WINDOW),
    "dynamic": _small(rope_scaling=dict(type="dynamic", factor=4.0)),
    "linear": _small(rope_scaling=dict(type="linear", factor=4.0), rope_theta=12345.6),
    "yarn-mscale": _small(rope_scaling=dict(YARN, mscale=0.9, mscale_all_dim=0.7, beta_fast=20.0, beta_slow=2.0)),
    "yarn-factor": _small(rope_scaling=dict(YARN, attention_factor=1.25, truncate=False), rope_theta=150000.0),
    "yarn-ratio": _small(rope_scaling=dict(YARN, factor=None)),
}  # fmt: skip
