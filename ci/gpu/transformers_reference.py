#!/usr/bin/env python3
"""Compare the engine with Hugging Face transformers on one GPU: the same weights, logits and decoding speed.

    transformers_reference.py make DIR [--size 1b|tiny]   seeded random Llama weights (bf16), ids.json, logits of
                                                          transformers in f32 and bf16, its decoding speed
    transformers_reference.py compare DIR                 compares logits-PROFILE.f32, which gpu_check --logits wrote
    transformers_reference.py limits                      matrix rate in bf16, and decoding speed of an 8B-size model

Each prints one JSON object. Needs torch with CUDA, transformers and numpy.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "tiny": dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, head_dim=64, vocab_size=4096),
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64, vocab_size=32768),
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=128256),
}
POSITIONS = 192
DECODED = 64


def model_of(size, dtype):
    """A seeded model on the GPU."""
    torch.manual_seed(20)
    config = LlamaConfig(**SIZES[size], max_position_embeddings=1024, rope_theta=500000.0, tie_word_embeddings=False, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def decode_ms(model, ids):
    """Milliseconds for each token of greedy decoding at batch 1, as `generate` does it."""
    batch = torch.tensor([ids], device="cuda")
    best = None
    with torch.no_grad():
        for _ in range(2):
            torch.cuda.synchronize()
            begin = time.time()
            model.generate(batch, attention_mask=torch.ones_like(batch), max_new_tokens=DECODED, min_new_tokens=DECODED, do_sample=False, pad_token_id=0)
            torch.cuda.synchronize()
            took = (time.time() - begin) * 1e3 / DECODED
            best = took if best is None else min(best, took)
    return best


def make(directory, size):
    """Write weights, token ids and the logits of transformers."""
    directory.mkdir(parents=True, exist_ok=True)
    model = model_of(size, torch.bfloat16)
    ids = torch.randint(3, SIZES[size]["vocab_size"], (POSITIONS,), generator=torch.Generator().manual_seed(7)).tolist()
    (directory / "ids.json").write_text(json.dumps(ids))
    model.save_pretrained(directory)
    batch = torch.tensor([ids], device="cuda")
    with torch.no_grad():
        np.save(directory / "hf-bf16.npy", model(batch).logits[0].float().cpu().numpy())
    found = {"size": size, "transformers_bf16_decode_ms": decode_ms(model, ids)}
    model = model.float()
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.no_grad():
        np.save(directory / "hf-f32.npy", model(batch).logits[0].cpu().numpy())
    found["transformers_f32_decode_ms"] = decode_ms(model, ids)
    print(json.dumps(found))


def distance(ours, theirs):
    """How far two sets of logits are apart."""
    off = np.abs(ours - theirs)
    scale = np.abs(theirs).max()
    log = lambda x: x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
    a, b = log(ours.astype(np.float64)), log(theirs.astype(np.float64))
    return {
        "max_abs": float(off.max()), "max_abs_of_scale": float(off.max() / scale), "mean_abs": float(off.mean()),
        "same_argmax": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        "max_kl": float((np.exp(b) * (b - a)).sum(-1).max()),
    }


def compare(directory):
    """Compare every file of logits with both of transformers, and those with each other."""
    theirs = {name: np.load(directory / f"hf-{name}.npy") for name in ("f32", "bf16")}
    found = {"transformers bf16 against its f32": distance(theirs["bf16"], theirs["f32"])}
    for file in sorted(directory.glob("logits-*.f32")):
        ours = np.fromfile(file, dtype=np.float32).reshape(theirs["f32"].shape)
        for name, logits in theirs.items():
            found[f"{file.stem[7:]} against transformers {name}"] = distance(ours, logits)
    print(json.dumps({"model": directory.name, "positions": POSITIONS, "logits": found}))


def library_gemv_us():
    """Microseconds that the library takes for each product of an 8B-size layer at batch 1: sums in an order of its own."""
    found = {}
    for name, outputs, inputs in (("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 28672, 4096), ("down", 4096, 14336)):
        # More weights than the cache holds, so that each is read from memory.
        weights = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(max(4, 400_000_000 // (outputs * inputs * 2)))]
        x = torch.randn(1, inputs, device="cuda", dtype=torch.bfloat16)
        for w in weights[:3]:
            torch.nn.functional.linear(x, w)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for w in weights:
                torch.nn.functional.linear(x, w)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        begin.record()
        for _ in range(10):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        found[name] = begin.elapsed_time(end) * 1e3 / 10 / len(weights)
    return found


def limits():
    """The matrix rate of the library on this GPU, and an 8B-size model's decoding in transformers."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        a @ b
    end.record()
    torch.cuda.synchronize()
    rate = 20 * 2 * n**3 / (begin.elapsed_time(end) * 1e-3) / 1e12
    del a, b
    products = library_gemv_us()
    model = model_of("8b", torch.bfloat16)
    ids = list(range(3, 259))
    print(json.dumps({"bf16_matrix_tflops": rate, "library_batch_1_us": products, "torch": torch.__version__, "transformers_8b_bf16_decode_ms": decode_ms(model, ids)}))


def main():
    """Do what the command line says."""
    what = sys.argv[1:]
    if what[:1] == ["make"]:
        make(Path(what[1]), what[3] if len(what) > 3 else "1b")
    elif what[:1] == ["compare"]:
        compare(Path(what[1]))
    elif what == ["limits"]:
        limits()
    else:
        print(__doc__, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
