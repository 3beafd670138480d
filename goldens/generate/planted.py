"""Show that the tiny goldens notice a forgotten feature: plant faults in the reference and count the cases that differ.

usage: planted.py

Each row changes one thing in the configuration or the weights of a tiny model and generates again with transformers. A golden
that does not notice would be vacuous, so the program exits with 1 if any fault leaves every token of every case as it was and
moves no log-probability by more than BOUND.
"""

import argparse
import sys
from dataclasses import dataclass, field

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from golden import GOLDENS, read_json
from reference import generate
from subjects import all_subjects

BOUND = 1e-4  # several times the largest difference between honest witnesses of the tiny models


def rope(**theta):
    """Rotary settings per layer type."""
    return {"rope_parameters": {k: {"rope_type": "default", "rope_theta": v} for k, v in theta.items()}}


@dataclass(frozen=True)
class Fault:
    """A change of configuration, or a constant written over the weights whose name contains a word."""

    model: str
    name: str
    config: dict = field(default_factory=dict)
    weights: str = ""
    value: float = 0.0


FAULTS = (
    Fault("llama3-rope", "unscaled rotary", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    Fault("mistral", "no sliding window", {"sliding_window": None}),
    Fault("mistral", "window one too small", {"sliding_window": 15}),
    Fault("mistral", "window one too large", {"sliding_window": 17}),
    Fault("qwen2", "no bias", weights="bias"),
    Fault("qwen2", "no v bias", weights="v_proj.bias"),
    Fault("qwen3", "no q norm weight", weights="q_norm", value=1.0),
    Fault("qwen3", "no k norm weight", weights="k_norm", value=1.0),
    Fault("mixtral", "one expert instead of two", {"num_experts_per_tok": 1}),
    Fault("qwen3-moe", "weights not normalised", {"norm_topk_prob": False}),
    Fault("qwen3-moe-unnormalised", "weights normalised", {"norm_topk_prob": True}),
    Fault("qwen3-moe-unnormalised", "two experts instead of three", {"num_experts_per_tok": 2}),
    Fault("olmoe", "weights normalised", {"norm_topk_prob": True}),
    Fault("olmoe", "no q norm weight", weights="q_norm", value=1.0),
    Fault("gemma3", "window one too small", {"sliding_window": 15}),
    Fault("gemma3", "window one too large", {"sliding_window": 17}),
    Fault("gemma3", "full attention everywhere", {"layer_types": ["full_attention"] * 3}),
    Fault("gemma3", "scale from head_dim", {"query_pre_attn_scalar": 16}),
    Fault("gemma3", "local theta everywhere", rope(full_attention=1e4, sliding_attention=1e4)),
    Fault("gemma3", "global theta everywhere", rope(full_attention=1e6, sliding_attention=1e6)),
    Fault("gemma3", "exact gelu", {"hidden_activation": "gelu"}),
    Fault("gemma3", "no q norm weight", weights="q_norm"),
    Fault("gemma3", "no norm weight after the MLP", weights="post_feedforward_layernorm"),
)


def faulty_model(fault):
    """The tiny model with the fault in it."""
    directory = all_subjects()[f"tiny-{fault.model}"].directory
    config = AutoConfig.from_pretrained(directory)
    for key, value in fault.config.items():
        setattr(config, key, value)
    eager = {"attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=torch.float32, **eager).eval()
    if fault.weights:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if fault.weights in name:
                    parameter.fill_(fault.value)
    return model


def noticed(fault):
    """(cases whose tokens differ, cases, largest log-probability difference before the first different token)."""
    model, cases = faulty_model(fault), read_json(GOLDENS / f"tiny-{fault.model}" / "ids.json")["cases"]
    differing, largest = 0, 0.0
    for case in cases:
        found = generate(model, case["prompt_ids"], len(case["generated_ids"]), set())
        differing += found["generated_ids"] != case["generated_ids"]
        for ours, theirs, a, b in zip(found["generated_ids"], case["generated_ids"], found["logprobs"], case["logprobs"]):
            if ours != theirs:
                break
            largest = max(largest, abs(a - b))
    return differing, len(cases), largest


def main():
    """Plant every fault; say which ones nobody noticed."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    missed = 0
    for fault in FAULTS:
        differing, cases, largest = noticed(fault)
        seen = differing > 0 or largest > BOUND
        missed += not seen
        verdict = "" if seen else "  NOT NOTICED"
        label = f"tiny-{fault.model}: {fault.name}"
        print(f"{label:<58} tokens differ in {differing} of {cases}, logprobs by {largest:.1e}{verdict}", flush=True)
    print(f"{len(FAULTS) - missed} of {len(FAULTS)} faults noticed")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
