"""Write the GGUF fixtures: blocks of every tensor type with their f32 values, and two complete tiny model files.

usage: gguf_fixtures.py

goldens/gguf/TYPE.json           raw block bytes (seeded; scales finite) and the f32 bits that the gguf package reads from them
goldens/models/tiny-gguf/        tiny-llama as GGUF, all F32: must answer `ids` exactly as goldens/tiny-llama/ids.json
goldens/models/tiny-gguf-quant/  tiny-llama-f16 as GGUF with Q8_0, Q4_0, Q4_1, Q5_0, F16, BF16 and F32 tensors
Both model files carry a byte-level GPT-2 tokenizer. Run tiny.py first, then reference.py tiny-gguf tiny-gguf-quant.
"""

import json

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file

from gguf_tokenizers import CONTROL, NORMAL, bytes_to_unicode
from golden import GOLDENS, versions, write_json

SEED = 7
BLOCKS = {256: 4, 32: 12, 1: 96}  # block size -> how many blocks
# Where the f16 scales sit inside a block: byte offsets.
SCALES = {
    Type.Q4_0: (0,),
    Type.Q4_1: (0, 2),
    Type.Q5_0: (0,),
    Type.Q8_0: (0,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
}
PLAIN = (Type.F32, Type.F16, Type.BF16)
EDGES = [0.0, -0.0, 1.0, -1.0, 1e-7, -6e-8, 65504.0, -65504.0, 6.1e-5, 3.0517578e-05, 1e-40, 3.3e38]
MERGES = ["Ġ t", "h e", "i n", "Ġ a", "Ġt he", "e r", "o n", "Ġ s", "a n", "r e", "n d", "Ġ w", "o u"]
QUANTISED = {
    "token_embd": Type.Q8_0,
    "attn_q": Type.Q4_1,
    "attn_k": Type.Q4_0,
    "attn_v": Type.Q5_0,
    "attn_output": Type.Q8_0,
    "ffn_gate": Type.Q4_1,
    "ffn_up": Type.Q5_0,
    "ffn_down": Type.F16,
    "output": Type.BF16,
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def plain_bytes(kind, count, rng):
    """Random finite numbers with the edges of the format in front."""
    values = np.concatenate([EDGES, rng.standard_normal(count - len(EDGES))]).astype(np.float32)
    if kind == Type.F16:
        return np.clip(values, -65504, 65504).astype(np.float16).view(np.uint8)
    if kind == Type.BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.view(np.uint8)


def block_bytes(kind, rng):
    """Blocks of random bytes whose f16 scales are finite, of both signs, down to zero and subnormals."""
    block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
    count = BLOCKS[block_size]
    if kind in PLAIN:
        return plain_bytes(kind, count, rng)
    raw = rng.integers(0, 256, (count, type_size), dtype=np.uint8)
    for offset in SCALES[kind]:
        scales = (rng.standard_normal(count) * 0.05).astype(np.float16)
        scales[:3] = [0.0, 5e-8, -1.0]
        raw[:, offset : offset + 2] = scales.view(np.uint8).reshape(count, 2)
    return raw.reshape(-1)


def write_blocks(kind):
    """One fixture file."""
    raw = block_bytes(kind, np.random.default_rng([SEED, int(kind)]))
    block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
    values = np.asarray(dequantize(raw, kind), dtype=np.float32).reshape(-1)
    assert np.isfinite(values).all() and len(values) == len(raw) // type_size * block_size
    fixture = {
        "schema": "parity-gguf-blocks/1",
        "type": kind.name,
        "ggml_type": int(kind),
        "block_size": block_size,
        "type_size": type_size,
        "blocks": len(raw) // type_size,
        "versions": versions("numpy") | {"gguf": gguf_version()},
        "raw": raw.tobytes().hex(),
        "expected_bits": [f"{bits:08x}" for bits in values.view(np.uint32)],
    }
    write_json(GOLDENS / "gguf" / f"{kind.name}.json", fixture)


def gguf_version():
    """The gguf package does not carry its version as an attribute."""
    from importlib.metadata import version

    return version("gguf")


def permute(weight, heads):
    """Llama rows as llama.cpp stores them: rotary pairs next to each other instead of half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def renamed(tensors, config):
    """Hugging Face names and row order to GGUF's."""
    yield "token_embd", tensors["model.embed_tokens.weight"]
    yield "output_norm", tensors["model.norm.weight"]
    yield "output", tensors["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        for source, target in LAYER_NAMES.items():
            weight = tensors[f"model.layers.{layer}.{source}.weight"]
            if target == "attn_q":
                weight = permute(weight, config["num_attention_heads"])
            elif target == "attn_k":
                weight = permute(weight, config["num_key_value_heads"])
            yield f"blk.{layer}.{target}", weight


def add_metadata(writer, config, name):
    """What a Llama reader needs, and a byte-level tokenizer whose pieces fill the vocabulary."""
    writer.add_name(name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    tokens = ["<unk>", "<s>", "</s>", *bytes_to_unicode().values(), *(m.replace(" ", "") for m in MERGES)]
    assert len(set(tokens)) == config["vocab_size"], len(set(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL] * 3 + [NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)


def write_model(source, target, types):
    """A Hugging Face tiny model as one GGUF file."""
    directory = GOLDENS / "models" / source
    config = json.loads((directory / "config.json").read_text())
    tensors = {k: v.astype(np.float32) for k, v in load_file(directory / "model.safetensors").items()}
    out = GOLDENS / "models" / target / "model.gguf"
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(out, "llama")
    add_metadata(writer, config, target)
    for name, weight in renamed(tensors, config):
        kind = types.get(name.split(".")[-1], Type.F32)
        writer.add_tensor(f"{name}.weight", quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"wrote models/{target}/model.gguf ({out.stat().st_size / 1000:.0f} kB)")


def main():
    """Everything."""
    for kind in (*PLAIN, *SCALES):
        write_blocks(kind)
    write_model("tiny-llama", "tiny-gguf", {})
    write_model("tiny-llama-f16", "tiny-gguf-quant", QUANTISED)


if __name__ == "__main__":
    main()
