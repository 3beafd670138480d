"""The golden file: schema "parity-golden/1", its provenance, and how numbers are written.

A golden is what a trusted implementation answered once. Numbers are IEEE binary32 written with the
fewest digits that read back to the same bits.
"""

import datetime
import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np

SCHEMA = "parity-golden/1"
GENERATE = Path(__file__).resolve().parent
GOLDENS = GENERATE.parent
REPOSITORY = GOLDENS.parent


def f32(value):
    """A float whose shortest decimal form is that of the nearest binary32."""
    return float(str(np.float32(value)))


def sha256_of(path):
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def versions(*modules):
    """Versions of Python and of the named modules that are loaded."""
    found = {"python": platform.python_version()}
    for name in modules:
        found[name] = str(__import__(name).__version__)
    return found


def command_line():
    """The command as a reader would repeat it, from the top of the repository."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(REPOSITORY) if script.is_relative_to(REPOSITORY) else script.name
    return " ".join(["python", str(shown), *sys.argv[1:]])


def platform_line():
    """Kind of machine, without naming it."""
    return f"{platform.system()} {platform.machine()}, CPU, 1 thread"


def now():
    """UTC time, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_json(path, value):
    """Write JSON that diffs well: one line per field, long arrays of numbers on one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_render(value, 0) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(REPOSITORY)} ({path.stat().st_size / 1000:.0f} kB)", flush=True)


def _render(value, depth):
    """JSON with objects and lists of objects broken over lines, everything else inline."""
    pad, inner = " " * depth, " " * (depth + 1)
    if isinstance(value, dict) and value:
        fields = [f"{inner}{json.dumps(k)}: {_render(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(fields) + f"\n{pad}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        items = [inner + _render(v, depth + 1) for v in value]
        return "[\n" + ",\n".join(items) + f"\n{pad}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":") if isinstance(value, list) else None)


def read_json(path):
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
