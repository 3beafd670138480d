#!/usr/bin/env python3
"""Compile every kernel for every GPU architecture that is supported, on a machine without a GPU.

NVRTC comes from a pinned package, installed with pip into .cuda at the top of the repository (ignored by git; about
230 MB) unless they are there already. For each architecture this writes into .cuda/kernels

    <digest>-<architecture>.cubin     machine code, as the engine loads it (MEGATRON_KERNELS names the directory)
    <digest>-<architecture>.json      what each kernel needs: registers, spilled bytes, stack, shared memory

The digest covers sources, options and architecture: what is already compiled is left alone.

exit codes
    0  every kernel is compiled for every architecture
    2  the command line was wrong
    3  the packages could not be installed
    4  a kernel does not compile (the compiler's messages are printed)
"""

import argparse
import ctypes
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".cuda"
SOURCES = ROOT / "engine" / "kernels"
PACKAGES = ["nvidia-cuda-nvrtc==13.0.88"]
ARCHITECTURES = ["sm_80", "sm_90a", "sm_100"]
# The same as in engine/src/kernels/cuda/compile.rs, in the same order: they are part of the digest.
OPTIONS = ["--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "-std=c++17", "-default-device"]


def fail(code, message):
    """End with a message on standard error."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def install():
    """Install the pinned packages once; return the directory of the libraries."""
    site = HOME / "site"
    stamp = site / "installed.txt"
    wanted = "\n".join(PACKAGES)
    site.mkdir(parents=True, exist_ok=True)
    # One installs, others wait for it.
    lock = open(HOME / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not stamp.is_file() or stamp.read_text() != wanted:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--upgrade", "--target", str(site), *PACKAGES]
        if subprocess.run(command).returncode != 0:
            fail(3, "pip could not install " + ", ".join(PACKAGES) + "; check the network and pip's index settings")
        stamp.write_text(wanted)
    lock.close()
    return site / "nvidia" / "cu13" / "lib"


def sources():
    """The kernel files by name, in the order of the digest."""
    names = sorted(p.name for p in SOURCES.iterdir() if p.suffix in (".cu", ".cuh", ".h"))
    return {name: (SOURCES / name).read_text() for name in names}


def digest_of(files, architecture):
    """The name of a compiled image; engine/src/kernels/cuda/compile.rs computes the same."""
    digest = hashlib.sha256()
    for name, text in files.items():
        digest.update(f"{name}\0{text}\0".encode())
    for option in [*OPTIONS, architecture]:
        digest.update(f"{option}\0".encode())
    return digest.hexdigest()[:32]


class Compiler:
    """NVRTC through its C interface."""

    def __init__(self, libraries):
        # The compiler opens its builtins by name, so they must be loaded before.
        for name in ("libnvrtc-builtins.so.13.0",):
            ctypes.CDLL(str(libraries / name), mode=ctypes.RTLD_GLOBAL)
        self.nvrtc = ctypes.CDLL(str(libraries / "libnvrtc.so.13"))

    def text(self, program, what):
        """A string or blob of a program: its log or its machine code."""
        size = ctypes.c_size_t()
        getattr(self.nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        blob = ctypes.create_string_buffer(size.value)
        getattr(self.nvrtc, f"nvrtcGet{what}")(program, blob)
        return blob.raw

    def compile(self, files, architecture):
        """Machine code and the assembler's report; ends the program when a kernel does not compile."""
        program = ctypes.c_void_p()
        bodies = (ctypes.c_char_p * len(files))(*[text.encode() for text in files.values()])
        names = (ctypes.c_char_p * len(files))(*[name.encode() for name in files])
        self.nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), files["all.cu"].encode(), b"all.cu", len(files), bodies, names
        )
        options = [*OPTIONS, f"--gpu-architecture={architecture}", "--ptxas-options=--verbose"]
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        code = self.nvrtc.nvrtcCompileProgram(program, len(options), array)
        log = self.text(program, "ProgramLog").decode(errors="replace").strip("\0")
        if code != 0:
            fail(4, f"the kernels do not compile for {architecture}:\n{log}")
        return self.text(program, "CUBIN"), log


def resources(log):
    """Registers, spilled bytes, stack and shared memory of each kernel, from the assembler's report."""
    report, name, frame = {}, None, (0, 0)
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name = found.group(1)
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            frame = (int(found.group(1)), int(found.group(2)))
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            report[name] = {
                "registers": int(found.group(1)),
                "spilled": frame[1],
                "stack": frame[0],
                "shared": int(shared.group(1)) if shared else 0,
            }
    return dict(sorted(report.items()))


def main():
    """Compile what is missing; print one line for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="ARCH", action="append", choices=ARCHITECTURES, help="only this architecture; may be repeated")
    parser.add_argument("--digests", action="store_true", help="print the digests and stop; installs nothing")
    arguments = parser.parse_args()
    files = sources()
    out = HOME / "kernels"
    compiler = None
    for architecture in arguments.only or ARCHITECTURES:
        digest = digest_of(files, architecture)
        if arguments.digests:
            print(f"{architecture} {digest}")
            continue
        image, report = (out / f"{digest}-{architecture}.{ending}" for ending in ("cubin", "json"))
        if not (image.is_file() and report.is_file()):
            out.mkdir(parents=True, exist_ok=True)
            compiler = compiler or Compiler(install())
            code, log = compiler.compile(files, architecture)
            # The assembler says so when it cannot keep the tensor cores busy; that is a defect of a kernel.
            if warned := [line for line in log.splitlines() if "warning" in line.lower()]:
                fail(4, f"the compiler warns for {architecture}:\n" + "\n".join(warned))
            for path, content in ((image, code), (report, json.dumps(resources(log), indent=1).encode())):
                unfinished = path.with_suffix(f".{os.getpid()}.tmp")
                unfinished.write_bytes(content)
                unfinished.replace(path)
        kernels = json.loads(report.read_text())
        spilled = sum(kernel["spilled"] > 0 for kernel in kernels.values())
        print(f"{architecture}: {len(kernels)} kernels, {spilled} with spills, {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
