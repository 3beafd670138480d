"""Record golden values with the genuine legacy engine: megatron-core 0.19.2 on CPUs over gloo, f32 unless a run says bf16.

usage: legacy.py MODEL [MODEL ...] [--only ENGINE_LAYOUT] [--list]

For every (engine, layout, suite) of LAYOUTS it asks the prompts of goldens/MODEL/SUITE.json (run reference.py first) and
writes, under goldens/MODEL/legacy/,
    golden_values_ENGINE_LAYOUT[_SUITE].json              Megatron's own schema: request id -> record
    golden_values_ENGINE_LAYOUT[_SUITE].provenance.json   what ran, on what, and which case each request id is
Nothing in megatron-core is edited; legacy_shim.py says what stands in for the GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from golden import GENERATE, GOLDENS, command_line, f32, now, platform_line, read_json, sha256_of, versions, write_json
from subjects import all_subjects


AXES = ("tp", "pp", "ep", "dp")
DTYPES = {"f32": "float32", "bf16": "bfloat16"}
FEATURES = {
    "": {},
    "chunked": {"enable_chunked_prefill": True, "max_tokens": 64},
    "prefix": {"enable_prefix_caching": True},
}


@dataclass(frozen=True)
class Run:
    """One engine in one layout over one suite, perhaps with options of InferenceConfig under a short name."""

    engine: str
    sizes: dict = field(default_factory=dict)
    suite: str = "core"
    feature: str = ""
    dtype: str = "f32"

    @property
    def options(self):
        """The arguments of InferenceConfig that the feature stands for."""
        return FEATURES[self.feature]

    @property
    def layout(self):
        """A readable name: tp1, tp2pp2, ep4."""
        return "".join(f"{axis}{size}" for axis, size in self.sizes.items())

    @property
    def name(self):
        """The part of the file name that identifies the run."""
        parts = [self.engine, self.layout, self.feature, "" if self.suite == "core" else self.suite]
        parts.append("" if self.dtype == "f32" else self.dtype)
        return "_".join(part for part in parts if part)

    @property
    def world(self):
        """Number of processes: replicas, stages, and in each the larger of the dense and the expert grid."""
        tp, pp, ep, dp = (self.sizes.get(axis, 1) for axis in AXES)
        return dp * pp * max(tp, ep)


def runs(*rows):
    """Rows of (engine, layout sizes, suite, feature, dtype); the last three may be left out."""
    return tuple(Run(*row) for row in rows)


LAYOUTS = {
    "dense": runs(
        ("static", {"tp": 1}),
        ("static", {"tp": 1}, "stops"),
        ("dynamic", {"tp": 1}),
        ("dynamic", {"tp": 1}, "stops"),
        ("dynamic", {"tp": 2}),
        ("dynamic", {"pp": 2}),
        ("dynamic", {"tp": 2, "pp": 2}),
        ("dynamic", {"tp": 8}),
        ("dynamic", {"tp": 1}, "core", "chunked"),
        ("dynamic", {"tp": 1}, "core", "prefix"),
        ("coordinator", {"tp": 1, "dp": 2}),
        ("dynamic", {"tp": 1}, "core", "", "bf16"),
        ("dynamic", {"tp": 2}, "core", "", "bf16"),
    ),
    "moe": runs(
        ("static", {"tp": 1}),
        ("static", {"tp": 1}, "stops"),
        ("dynamic", {"ep": 1}),
        ("dynamic", {"ep": 1}, "stops"),
        ("dynamic", {"ep": 2}),
        ("dynamic", {"ep": 4}),
        ("dynamic", {"tp": 2, "ep": 2}),
        ("coordinator", {"ep": 2}),
    ),
    "smollm2-135m": runs(
        ("dynamic", {"tp": 1}),
        ("dynamic", {"tp": 1}, "stops"),
        ("dynamic", {"tp": 3}),
    ),
}


def make_job(subject, run, golden, directory, tokenizer, out):
    """Everything that a rank needs to know."""
    requests = []
    for case in golden["cases"]:
        prompt = tokenizer.decode(case["prompt_ids"], skip_special_tokens=False)
        requests.append({"prompt": case.get("prompt", prompt), "prompt_ids": case["prompt_ids"]})
    return {
        "directory": str(directory),
        "engine": run.engine,
        **{axis: run.sizes.get(axis, 1) for axis in ("tp", "pp", "ep")},
        "options": run.options,
        "dtype": DTYPES[run.dtype],
        "block_size": subject.block_size,
        "max_sequence_length": min(subject.context, 1024),
        "buffer_size_gb": 0.1 if subject.context <= 512 else 1.0,
        "settings": golden["settings"],
        "requests": requests,
        "out": str(out),
    }


def launch(job, world, scratch):
    """Start the ranks and wait for them; a failure shows the end of their output."""
    path = scratch / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(world), str(GENERATE / "legacy_worker.py"), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(GENERATE), "TQDM_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        print("\n".join((done.stdout + done.stderr).splitlines()[-60:]), file=sys.stderr)
        raise SystemExit("the legacy run failed")


def rounded(value):
    """Every float as the shortest decimal of its binary32."""
    if isinstance(value, float):
        return f32(value)
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return value


def provenance(subject, run, golden, reference):
    """The sidecar that Megatron's schema has no room for."""
    found = versions("torch", "transformers", "tokenizers")
    found["megatron-core"] = version("megatron-core")
    return {
        "schema": "parity-legacy-provenance/1",
        "model": subject.name,
        "suite": run.suite,
        "witness": f"megatron-core {run.engine}",
        "implementation": "megatron-core, unedited, on CPU over gloo; see goldens/generate/legacy_shim.py",
        "engine": run.engine,
        "layout": {**{axis: run.sizes.get(axis, 1) for axis in AXES}, "world": run.world},
        "options": run.options,
        "versions": found,
        **subject.digests(),
        "dtype": run.dtype,
        "attention": "torch functions in place of flash-attention" if run.engine != "static" else "megatron-core local",
        "settings": golden["settings"],
        "prompts_from": {"file": f"{subject.name}/{run.suite}.json", "sha256": sha256_of(reference)},
        "request_ids": {str(i): case["id"] for i, case in enumerate(golden["cases"])},
        "platform": platform_line(),
        "command": command_line(),
        "created": now(),
    }


def record(subject, run, tokenizer):
    """One run: prompts in, golden values and provenance out."""
    reference = GOLDENS / subject.name / f"{run.suite}.json"
    golden = read_json(reference)
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        out = scratch / "records.json"
        job = make_job(subject, run, golden, subject.hugging_face_directory(), tokenizer, out)
        launch(job, run.world, scratch)
        answered = read_json(out)
    records = rounded(answered["records"])
    folder = GOLDENS / subject.name / "legacy"
    write_json(folder / f"golden_values_{run.name}.json", {str(i): r for i, r in enumerate(records)})
    about = provenance(subject, run, golden, reference) | {"observed": answered["observed"]}
    write_json(folder / f"golden_values_{run.name}.provenance.json", about)
    equal = sum(r["generated_tokens"] == c["generated_ids"] for r, c in zip(records, golden["cases"], strict=True))
    print(f"{subject.name} {run.name}: {equal} of {len(records)} cases equal, {time.time() - started:.0f} s", flush=True)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(LAYOUTS), metavar="MODEL", help=", ".join(LAYOUTS))
    parser.add_argument("--only", metavar="ENGINE_LAYOUT", help="one run, for example dynamic_tp2pp2")
    parser.add_argument("--list", action="store_true", help="show the runs and stop")
    arguments = parser.parse_args()
    subjects = all_subjects()
    for name in arguments.models:
        chosen = [run for run in LAYOUTS[name] if arguments.only in (None, run.name)]
        if arguments.list:
            print(f"{name}: {' '.join(run.name for run in chosen)}")
            continue
        tokenizer = subjects[name].load_tokenizer()
        for run in chosen:
            record(subjects[name], run, tokenizer)


if __name__ == "__main__":
    main()
