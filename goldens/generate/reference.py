"""Write goldens with Hugging Face transformers: f32, eager attention, greedy, one prompt at a time.

usage: reference.py MODEL [MODEL ...] [--suite core|stops|ids]

Writes goldens/MODEL/SUITE.json. Every step is a cached decode step, as in serving. The natural log-probability
and the margin (best minus second-best logit) are evaluated in f64 from the f32 logits and rounded once to f32.
"""

import argparse

import torch

from golden import GOLDENS, SCHEMA, command_line, f32, now, platform_line, versions, write_json
from subjects import all_subjects
from suites import SUITES, suites_of


@torch.inference_mode()
def generate(model, prompt_ids, count, stop_ids):
    """Greedy decoding; an exact tie goes to the lowest token id. Returns the per-step columns of a case."""
    columns = {"generated_ids": [], "logprobs": [], "margins": [], "top2": []}
    cache, step = None, torch.tensor([prompt_ids])
    for _ in range(count):
        output = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = output.past_key_values, output.logits[0, -1].double()
        best = int((logits == logits.max()).nonzero()[0])
        others = logits.clone()
        others[best] = float("-inf")
        second = int((others == others.max()).nonzero()[0])
        columns["generated_ids"].append(best)
        columns["logprobs"].append(f32(logits[best] - logits.logsumexp(-1)))
        columns["margins"].append(f32(logits[best] - logits[second]))
        columns["top2"].append([best, second])
        if best in stop_ids:
            break
        step = torch.tensor([[best]])
    return columns


def eos_ids(model):
    """The ids that end generation, as the model's own files say."""
    eos = model.generation_config.eos_token_id
    return [] if eos is None else list(eos) if isinstance(eos, list) else [eos]


def answer(model, tokenizer, case, settings):
    """One case with everything that was answered."""
    stop_ids = set() if settings["ignore_eos"] else set(settings["eos_token_ids"])
    columns = generate(model, case["prompt_ids"], settings["max_new_tokens"], stop_ids)
    stopped = columns["generated_ids"][-1] in stop_ids
    text = tokenizer.decode(columns["generated_ids"], skip_special_tokens=True) if tokenizer else ""
    print(
        f"  {case['id']:<18} prompt {len(case['prompt_ids']):>4}  new {len(columns['generated_ids']):>3}"
        f"  min margin {min(columns['margins']):.2e}  {text[:70]!r}",
        flush=True,
    )
    return {**case, **columns, "finish_reason": "stop" if stopped else "length", "text": text}


def provenance(subject):
    """Who answered, with what."""
    source = "Hugging Face transformers"
    if subject.gguf:
        source += ", weights dequantised to f32 from GGUF by the gguf package"
    return {
        "implementation": source,
        "versions": versions("torch", "transformers", "tokenizers"),
        **subject.digests(),
        "dtype": "f32",
        "attention": "eager",
        "platform": platform_line(),
        "command": command_line(),
        "created": now(),
    }


def record(subject, model, tokenizer, suite):
    """Answer one suite and write its golden."""
    chosen, cases = SUITES[suite](subject, tokenizer)
    settings = {
        "block_size": subject.block_size,
        "max_new_tokens": chosen["max_new_tokens"],
        "eos_token_ids": eos_ids(model),
        "ignore_eos": chosen["ignore_eos"],
    }
    print(f"{subject.name}/{suite}", flush=True)
    golden = {
        "schema": SCHEMA,
        "model": subject.name,
        "suite": suite,
        "witness": "transformers",
        "provenance": provenance(subject),
        "settings": settings,
        "cases": [answer(model, tokenizer, case, settings) for case in cases],
    }
    write_json(GOLDENS / subject.name / f"{suite}.json", golden)


def main():
    """Command line."""
    subjects = all_subjects()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=sorted(subjects), metavar="MODEL", help=", ".join(sorted(subjects)))
    parser.add_argument("--suite", choices=sorted(SUITES), help="only this suite")
    arguments = parser.parse_args()
    for name in arguments.models:
        subject = subjects[name]
        model, tokenizer = subject.load_model(), subject.load_tokenizer()
        for suite in [arguments.suite] if arguments.suite else suites_of(subject):
            record(subject, model, tokenizer, suite)


if __name__ == "__main__":
    main()
