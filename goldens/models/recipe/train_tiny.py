"""Train one of the two small story models from scratch on a CPU and save a Hugging Face directory.

usage: train_tiny.py dense|moe CORPUS.json OUT_DIR [--minutes 15 | --steps N] [--threads 1]

dense  Llama,   8 layers, 8 heads, ffn 192, tied embeddings (0.46 M parameters): cuts into TP 1, 2, 4, 8 and PP 1, 2, 4, 8
moe    Mixtral, 4 layers, 8 heads, 8 experts of ffn 64, top-2 (0.49 M parameters): the same, and EP 1, 2, 4, 8

Both use a byte-level BPE of 512 pieces, trained on the same corpus. See README.md for what was measured.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

SEED = 1234
HELD_OUT_STORIES = 100
VOCABULARY, BOS, EOS = 512, 1, 2
SEQUENCE, BATCH = 192, 12
PEAK_RATE, WARMUP_STEPS, WEIGHT_DECAY = 3e-3, 50, 0.05
SHARED_SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=8,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    hidden_act="silu",
    tie_word_embeddings=True,
    bos_token_id=BOS,
    eos_token_id=EOS,
)
SAMPLES = ("Once there was a", "In a house near the river", "Nora was a", "One windy day Otto")


def load_stories(path):
    """The corpus in a seeded order, cut into (training, held out)."""
    stories = json.loads(path.read_text())
    random.seed(SEED)
    random.shuffle(stories)
    return stories[HELD_OUT_STORIES:], stories[:HELD_OUT_STORIES]


def train_tokenizer(stories):
    """Byte-level BPE with <unk>, <s>, </s> first; every text starts with <s>."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(stories, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def build_model(kind):
    """A freshly initialised model of one of the two shapes."""
    if kind == "dense":
        return LlamaForCausalLM(LlamaConfig(**SHARED_SHAPE, intermediate_size=192, num_hidden_layers=8))
    config = MixtralConfig(
        **SHARED_SHAPE,
        intermediate_size=64,
        num_hidden_layers=4,
        num_local_experts=8,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.02,
        sliding_window=None,
        experts_implementation="grouped_mm",
    )
    return MixtralForCausalLM(config)


def pack(tokenizer, stories):
    """All stories as one tensor of ids, each closed by EOS."""
    ids = []
    for story in stories:
        ids += tokenizer(story).input_ids + [EOS]
    return torch.tensor(ids)


def draw_batch(source, size, generator=None):
    """`size` windows of SEQUENCE ids from random places."""
    starts = torch.randint(0, len(source) - SEQUENCE - 1, (size,), generator=generator)
    return torch.stack([source[start : start + SEQUENCE] for start in starts])


@torch.no_grad()
def held_out_loss(model, source, batches):
    """Mean nats per token over the same seeded windows every time."""
    model.eval()
    generator, total = torch.Generator().manual_seed(7), 0.0
    for _ in range(batches):
        ids = draw_batch(source, 4, generator)
        logits = model(ids).logits[:, :-1]
        total += F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)).item()
    model.train()
    return total / batches


def train(model, training, held_out, budget):
    """AdamW under a cosine schedule over the budget; `budget(step)` says which part is spent (0 to 1)."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.99))
    routed = hasattr(model.config, "num_local_experts")
    step, reported = 0, time.time()
    model.train()
    while (spent := budget(step)) < 1:
        rate = PEAK_RATE * min(1, (step + 1) / WARMUP_STEPS) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * spent)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = draw_batch(training, BATCH)
        loss = model(ids, labels=ids, **({"output_router_logits": True} if routed else {})).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if time.time() - reported > 90:
            reported = time.time()
            print(f"step {step} loss {loss.item():.3f} held out {held_out_loss(model, held_out, 20):.4f}", flush=True)
    return step


def save(model, tokenizer, out):
    """Write the directory; generation knows BOS and EOS, and the training-only router loss is off."""
    model.config.router_aux_loss_coef = 0.0
    model.generation_config.bos_token_id, model.generation_config.eos_token_id = BOS, EOS
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@torch.no_grad()
def show_samples(model, tokenizer):
    """A few greedy continuations, to see at a glance whether the training worked."""
    model.eval()
    for text in SAMPLES:
        ids = tokenizer(text, return_tensors="pt").input_ids
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=90, do_sample=False, pad_token_id=0)
        print(">>", tokenizer.decode(out[0], skip_special_tokens=True), flush=True)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["dense", "moe"])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--steps", type=int, help="train this many steps instead of a number of minutes (repeatable)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    stories, held = load_stories(arguments.corpus)
    tokenizer = train_tokenizer(stories)
    training, held_out = pack(tokenizer, stories), pack(tokenizer, held)
    model = build_model(arguments.kind)
    started = time.time()
    if arguments.steps:
        steps = train(model, training, held_out, lambda step: step / arguments.steps)
    else:
        steps = train(model, training, held_out, lambda _: (time.time() - started) / (arguments.minutes * 60))
    loss = held_out_loss(model, held_out, 80)
    per_character = loss * len(held_out) / sum(map(len, held))
    print(f"{steps} steps, {steps * SEQUENCE * BATCH} tokens, held out {loss:.4f} nats/token, {per_character:.4f} nats/character")
    save(model, tokenizer, arguments.out)
    show_samples(model, tokenizer)


if __name__ == "__main__":
    main()
