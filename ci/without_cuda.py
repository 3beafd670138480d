#!/usr/bin/env python3
"""Lets the PyPI build of torch be imported on a machine that has none of CUDA's libraries.

usage: without_cuda.py SITE_PACKAGES

torch's wheel for Linux is linked against a dozen NVIDIA libraries, 3 GB of wheels that a CPU never calls. In their place
this compiles libraries of the same names that have just the functions that torch is linked to; each returns error 100,
"no device", so torch sees a machine without a GPU. torch itself is not touched. Needs a C compiler and readelf.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

FOREIGN = re.compile(r"lib(cu|nv|nccl)\w*\.so\.\d+")
# A symbol without a version that is NVIDIA's by its name.
NVIDIAS = re.compile(r"_*(cu|nv|nccl)\w+")
UNDEFINED = re.compile(r"\s*\d+: 0+\s+\d+ (FUNC|NOTYPE|OBJECT)\s+GLOBAL \w+\s+UND (\S+)")

# A line that names a file whose versions follow, or such a version.
VERSIONS = re.compile(r"Version: 1  File: (\S+)|Name: (\S+)  Flags: \S+  Version: \d+")
NEEDED = re.compile(r"\(NEEDED\).*\[(.*)\]")
# These return text; an error number would be taken for an address.
TEXTS = re.compile(r"get\w*(error|name)\w*string|get(error|version)string|geterrorname", re.IGNORECASE)


def wanted(libraries):
    """For each NVIDIA library that torch is linked to, the functions that it is to have, by the version that is asked for."""
    asked, loose = defaultdict(lambda: defaultdict(set)), set()
    for library in libraries:
        command = ["readelf", "--dynamic", "--dyn-syms", "--version-info", "--wide", str(library)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for name in NEEDED.findall(text):
            if FOREIGN.fullmatch(name):
                asked[name]  # linked to, perhaps without a function
        owners, owner = {}, None
        for file, version in VERSIONS.findall(text):
            owner = file or owner
            if version:
                owners[version] = owner
        for kind, symbol in UNDEFINED.findall(text):
            name, _, version = symbol.partition("@")
            if FOREIGN.fullmatch(owners.get(version, "")):
                asked[owners[version]][version].add((name, kind))
            elif not version and NVIDIAS.fullmatch(name):
                loose.add((name, kind))
    # Without a version any library that is loaded will do, and torch loads this one always.
    asked["libcudart.so.13"]["libcudart.so.13"] |= loose
    return asked


def source(symbols):
    """C text of a stand-in."""
    lines = []
    for name, kind in symbols:
        if kind == "OBJECT":
            lines.append(f"long {name}[32];")
        elif TEXTS.search(name):
            lines.append(f'const char *{name}(void) {{ return "no device"; }}')
        else:
            lines.append(f"int {name}(void) {{ return 100; }}")
    return "\n".join(lines) + "\n"


def main():
    """Command line."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    site = Path(sys.argv[1])
    libraries = sorted((site / "torch" / "lib").glob("*.so*"))
    if not libraries:
        raise SystemExit(f"no torch in {site}")
    out = site / "nvidia" / "cu13" / "lib"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        code, versions = Path(scratch) / "stand_in.c", Path(scratch) / "versions"
        for name, asked in wanted(libraries).items():
            code.write_text(source(sorted(set().union(*asked.values()))), encoding="utf-8")
            script = []
            for version, symbols in asked.items():
                names = "; ".join(sorted(name for name, _ in symbols))
                script += [f"{version} {{ {names}; }};"] if names else []
            versions.write_text("\n".join(script) or f"{name} {{ }};", encoding="utf-8")
            command = ["cc", "-shared", "-fPIC", "-w", "-O1", "-nostdlib", f"-Wl,-soname,{name}"]
            command += [f"-Wl,--version-script={versions}", "-o", str(out / name), str(code)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
