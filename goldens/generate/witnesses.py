"""Compare every witness with the reference golden, case by case, and write goldens/MODEL/witnesses.json.

usage: witnesses.py MODEL [MODEL ...]
       witnesses.py --table      print the summary of all goldens/*/witnesses.json as Markdown

Witnesses are the legacy runs under goldens/MODEL/legacy/, and two more evaluations of the reference's own path by
transformers: the whole sequence in one pass in f32, and in f64 throughout (norms, rotary tables and softmax too, which
transformers otherwise keeps in f32). The f64 pass says how far the reference's own rounding moves a log-probability,
which is what a stated bound should be measured against.

Per case: do the tokens agree, where do they first differ and what was the reference's margin there, and the largest
difference of log-probabilities over the common tokens (of the generation, and of the prompt where the witness has it).
"""

import argparse
import contextlib

import torch
from torch.overrides import TorchFunctionMode

from golden import GOLDENS, command_line, f32, now, platform_line, read_json, sha256_of, versions, write_json
from subjects import all_subjects
from suites import suites_of

PROMPT_LOGITS_LIMIT = 50_000_000
PROMPT_WRONG = 1e-3  # legacy-engine defects are of the order of 1 to 10; rounding is under 1e-4


class EverythingInF64(TorchFunctionMode):
    """Turns every request for f32, inside the model's own code too, into f64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return function(*args, **kwargs)


def largest_difference(left, right):
    """Largest absolute difference over the common length, or None when nothing is common."""
    pairs = list(zip(left, right))
    return float(f"{max(abs(a - b) for a, b in pairs):.3g}") if pairs else None


def compare(case, tokens, logprobs, stop_ids):
    """One case of a witness against the reference."""
    reference = case["generated_ids"]
    common = min(len(reference), len(tokens))
    first = next((i for i in range(common) if reference[i] != tokens[i]), None)
    if first is None and len(reference) != len(tokens):
        first = common
    verdict = "equal" if first is None else "different"
    if first == len(tokens) == len(reference) - 1 and reference[-1] in stop_ids:
        verdict = "equal, EOS left out"
    agreed = common if first is None else first
    return {
        "case": case["id"],
        "tokens": verdict,
        "compared": agreed,
        "first_difference": first if verdict == "different" else None,
        "margin_at_difference": case["margins"][first] if verdict == "different" and first < len(reference) else None,
        "max_logprob_diff": largest_difference(case["logprobs"][:agreed], logprobs[:agreed]),
    }


def compare_prompt(logprobs, expected):
    """Prompt log-probabilities, aligned at the end: a legacy engine leaves out those of cached tokens."""
    missing = len(expected) - len(logprobs)
    differences = [abs(a - b) for a, b in zip(logprobs, expected[missing:], strict=True)]
    return {
        "prompt_logprobs_missing": missing,
        "prompt_logprobs_wrong_at": [missing + i for i, d in enumerate(differences) if d > PROMPT_WRONG],
        "max_prompt_logprob_diff": max((float(f"{d:.3g}") for d in differences if d <= PROMPT_WRONG), default=None),
    }


def summary(name, rows, **about):
    """A witness with its rows and the numbers that a reader looks for first."""
    differences = [row["max_logprob_diff"] for row in rows if row["max_logprob_diff"] is not None]
    return {
        "witness": name,
        **about,
        "cases_equal": sum(row["tokens"] != "different" for row in rows),
        "cases_compared": len(rows),
        "max_logprob_diff": max(differences, default=None),
        "cases": rows,
    }


@torch.inference_mode()
def evaluate(model, case):
    """Teacher-forced in one pass: (prompt log-probs or None, generated log-probs, the argmax of each step)."""
    prompt, generated = case["prompt_ids"], case["generated_ids"]
    ids = torch.tensor(prompt + generated)
    whole = len(ids) * model.config.vocab_size < PROMPT_LOGITS_LIMIT
    keep = len(ids) if whole else len(generated) + 1
    logits = model(ids[None], logits_to_keep=keep).logits[0].double()
    picked = logits[:-1].log_softmax(-1).gather(1, ids[len(ids) - keep + 1 :, None])[:, 0].tolist()
    best = logits[-len(generated) - 1 : -1].argmax(-1).tolist()
    return picked[: -len(generated)] if whole else None, picked[-len(generated) :], best


def one_pass(subject, golden, dtype):
    """The reference's own path evaluated again; also returns prompt log-probs by case id."""
    rows, prompts = [], {}
    with EverythingInF64() if dtype == torch.float64 else contextlib.nullcontext():
        model = subject.load_model(dtype)
        for case in golden["cases"]:
            prompts[case["id"]], logprobs, best = evaluate(model, case)
            rows.append(compare(case, best, logprobs, ()))
    name = "transformers, one pass, " + ("f64" if dtype == torch.float64 else "f32")
    return summary(name, rows), prompts


def legacy(subject, suite, golden, prompt_logprobs):
    """All legacy runs of a suite."""
    found = []
    for path in sorted((GOLDENS / subject.name / "legacy").glob("*.provenance.json")):
        about = read_json(path)
        if about["suite"] != suite:
            continue
        values_path = path.with_name(path.name.replace(".provenance", ""))
        values = read_json(values_path)
        cases = {case["id"]: case for case in golden["cases"]}
        rows = []
        for request_id, case_id in about["request_ids"].items():
            tokens, logprobs = values[request_id]["generated_tokens"], values[request_id]["logprobs"]
            at = len(logprobs) - len(tokens)  # the prompt's come first
            row = compare(cases[case_id], tokens, logprobs[at:], golden["settings"]["eos_token_ids"])
            rows.append(row | compare_prompt(logprobs[:at], prompt_logprobs.get(case_id) or []))
        prompt_differences = [r["max_prompt_logprob_diff"] for r in rows if r["max_prompt_logprob_diff"] is not None]
        found.append(
            summary(
                about["witness"],
                rows,
                file=f"legacy/{values_path.name}",
                layout=about["layout"],
                options=about.get("options", {}),
                observed=about.get("observed", {}),
                max_prompt_logprob_diff=max(prompt_differences, default=None),
                prompt_logprobs_wrong=sum(len(r["prompt_logprobs_wrong_at"]) for r in rows),
                prompt_logprobs_missing=sum(r["prompt_logprobs_missing"] for r in rows),
            )
        )
    return found


def judge(subject, suite):
    """All witnesses of one suite."""
    path = GOLDENS / subject.name / f"{suite}.json"
    golden = read_json(path)
    margins = [m for case in golden["cases"] for m in case["margins"]]
    in_f32, prompts = one_pass(subject, golden, torch.float32)
    in_f64, _ = one_pass(subject, golden, torch.float64)
    witnesses = [in_f32, in_f64, *legacy(subject, suite, golden, prompts)]
    for w in witnesses:
        where = w.get("file", "")
        agree = f"{w['cases_equal']}/{w['cases_compared']} {w['max_logprob_diff']}"
        print(f"{subject.name}/{suite}: {agree} {w['witness']} {where}", flush=True)
    return {
        "suite": suite,
        "golden_sha256": sha256_of(path),
        "steps": len(margins),
        "min_margin": f32(min(margins)),
        "witnesses": witnesses,
    }


def table():
    """One row per model and suite: cases and tokens that agree, and the largest difference per kind of witness."""
    print("| model / suite | steps | smallest margin | witnesses | cases that agree | f32 one pass | f64 | megatron-core |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for path in sorted(GOLDENS.glob("*/witnesses.json")):
        report = read_json(path)
        for suite in report["suites"]:
            witnesses = suite["witnesses"]
            legacy_runs = [w["max_logprob_diff"] for w in witnesses if "file" in w]
            agree, compared = (sum(w[key] for w in witnesses) for key in ("cases_equal", "cases_compared"))
            cells = [f"{report['model']} / {suite['suite']}", suite["steps"], f"{suite['min_margin']:.1e}", len(witnesses)]
            cells += [f"{agree} of {compared}", *(f"{w['max_logprob_diff']:.1e}" for w in witnesses[:2])]
            cells.append(f"{max(legacy_runs):.1e}" if legacy_runs else "-")
            print("| " + " | ".join(map(str, cells)) + " |")


def main():
    """Command line."""
    subjects = all_subjects()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(sorted(subjects)))
    parser.add_argument("--table", action="store_true", help="only print the summary of what is there")
    arguments = parser.parse_args()
    if arguments.table:
        return table()
    for name in arguments.models:
        report = {
            "schema": "parity-witnesses/1",
            "model": name,
            "reference": "transformers, cached decoding, f32",
            "versions": versions("torch", "transformers"),
            "platform": platform_line(),
            "command": command_line(),
            "created": now(),
            "suites": [judge(subjects[name], suite) for suite in suites_of(subjects[name])],
        }
        write_json(GOLDENS / name / "witnesses.json", report)


if __name__ == "__main__":
    main()
