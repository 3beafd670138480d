"""Make one tiny model with seeded random weights for every architecture family of the engine.

usage: tiny.py [FAMILY ...]

Writes goldens/models/tiny-FAMILY/{config.json, generation_config.json, model.safetensors}. The weights are drawn wider
than usual, so that the best token is well ahead of the second and exact comparison means something; norm weights
and biases are drawn too, so that forgetting one shows. Each keeps the family's special features small enough to be
exercised by the prompts of the `ids` suite (a sliding window of 16 against prompts of up to 150 ids).
Then: reference.py tiny-FAMILY.
"""

import argparse
import shutil
from dataclasses import dataclass

import torch
import transformers

from golden import GOLDENS

VOCABULARY = 256
SEED = 42
COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


@dataclass(frozen=True)
class Family:
    """A configuration class, what differs from COMMON, and the stored dtype."""

    config: str
    changes: dict
    dtype: torch.dtype = torch.float32


def experts(**changes):
    """A small routed MLP: 8 experts, top-2 unless said otherwise."""
    return dict(num_experts_per_tok=2, intermediate_size=16) | changes


FAMILIES = {
    # 6 query heads over 3 KV heads: no power of two; 272 pieces so that gguf_fixtures.py can give it a byte-level tokenizer
    "llama": Family(
        "LlamaConfig",
        dict(hidden_size=48, num_attention_heads=6, num_key_value_heads=3, intermediate_size=32, vocab_size=272),
    ),
    "llama3-rope": Family(
        "LlamaConfig",
        dict(
            max_position_embeddings=512,
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=500000.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "llama-bf16": Family("LlamaConfig", dict(tie_word_embeddings=True), torch.bfloat16),
    "llama-f16": Family("LlamaConfig", dict(num_key_value_heads=1, vocab_size=272), torch.float16),
    "mistral": Family("MistralConfig", dict(sliding_window=16)),
    "qwen2": Family("Qwen2Config", dict(tie_word_embeddings=True, rope_theta=1000000.0)),
    "qwen3": Family("Qwen3Config", dict(head_dim=16, rope_theta=1000000.0)),
    "gemma3": Family(
        "Gemma3TextConfig",
        dict(
            num_hidden_layers=3,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=16,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            tie_word_embeddings=True,
            hidden_activation="gelu_pytorch_tanh",
            rope_parameters=dict(
                full_attention=dict(rope_type="default", rope_theta=1000000.0),
                sliding_attention=dict(rope_type="default", rope_theta=10000.0),
            ),
        ),
    ),
    "mixtral": Family("MixtralConfig", experts(num_local_experts=8, sliding_window=None)),
    "qwen3-moe": Family(
        "Qwen3MoeConfig",
        dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True, decoder_sparse_step=1),
    ),
    "qwen3-moe-unnormalised": Family(
        "Qwen3MoeConfig",
        dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=16, norm_topk_prob=False, mlp_only_layers=[0]),
    ),
    "olmoe": Family("OlmoeConfig", experts(num_experts=8, norm_topk_prob=False)),
}


@torch.no_grad()
def draw_weights(model):
    """Matrices wide enough for clear margins; norms around their neutral value; biases away from zero."""
    generator = torch.Generator().manual_seed(SEED)
    gemma = model.config.model_type.startswith("gemma")
    # a tied head reads the embedding table: wide rows would only repeat the last token
    embedding_width = 0.04 if gemma else 0.35 if model.config.tie_word_embeddings else 1.0
    for name, tensor in sorted(model.named_parameters()):
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("norm.weight"):
            neutral = 1.0 if not gemma else 10.0 if name == "model.norm.weight" else 0.0
            tensor.copy_(neutral + 0.2 * noise)
        elif name.endswith("bias"):
            tensor.copy_(0.5 * noise)
        elif "embed_tokens" in name:
            tensor.copy_(noise * embedding_width)
        elif "lm_head" in name:
            tensor.copy_(0.7 * noise)
        else:
            tensor.copy_(noise * 1.6 / tensor.shape[-1] ** 0.5)


def make(name):
    """Build, draw and save one family."""
    family = FAMILIES[name]
    config = getattr(transformers, family.config)(**{**COMMON, **family.changes})
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    draw_weights(model)
    model = model.to(family.dtype)
    model.config.dtype = family.dtype
    model.generation_config.eos_token_id, model.generation_config.bos_token_id = 2, 1
    out = GOLDENS / "models" / f"tiny-{name}"
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    size = (out / "model.safetensors").stat().st_size
    print(f"tiny-{name}: {sum(p.numel() for p in model.parameters())} parameters, {size / 1000:.0f} kB", flush=True)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES), metavar="FAMILY", help=", ".join(FAMILIES))
    for name in parser.parse_args().families:
        make(name)


if __name__ == "__main__":
    main()
