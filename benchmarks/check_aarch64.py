"""Does everything that the extra ``edge`` needs install on a 64-bit Raspberry Pi without a compiler?

::

    python benchmarks/check_aarch64.py [--lock requirements/dev.lock] [--python 3.11 ...]

uv resolves the extra for Debian 12's glibc on aarch64, at the versions of the lock, with building from source forbidden: each
distribution has an aarch64 wheel or is pure Python, or the resolution fails and names it. Ends with 1 then; with 0 where all
is well, and, with the reason, where no package index answers.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Raspberry Pi OS 12 has glibc 2.36 and Python 3.11.
PLATFORM = "aarch64-manylinux_2_36"
PINNED = re.compile(r"^[A-Za-z0-9._-]+==[^\s;\\]+(?: ; [^\\\n]+)?", re.MULTILINE)
_NO_WHEEL = re.compile(
    r"(\S+?)(?:\{[^}]*\})?==(\S+) has no usable wheels|all versions of (\S+) have no usable wheels"
)
_NO_NETWORK = (
    "Failed to fetch",
    "error sending request",
    "Could not connect",
    "dns error",
    "was not found in the package registry",
)


@dataclass(frozen=True)
class Outcome:
    """What a resolution said.

    Attributes:
        wheels: The distributions that install; empty where it failed.
        missing: Who has no wheel.
        skipped: Why nothing could be judged.
    """

    wheels: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    skipped: str = ""


def judge(requirements: list[str], python: str, constraints: str, *, platform: str = PLATFORM) -> Outcome:
    """Resolve for a Pi with wheels alone."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, pins = Path(folder) / "wanted.in", Path(folder) / "pins.txt"
        wanted.write_text("\n".join(requirements))
        pins.write_text(constraints)
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("uv")), "pip", "compile", str(wanted), "--python-platform", platform,
                "--python-version", python, "--only-binary", ":all:", "-c", str(pins), "--no-header", "--no-annotate", "-q",
            ],
            capture_output=True, text=True, check=False, cwd=folder,
        )  # fmt: skip
    if done.returncode == 0:
        return Outcome(wheels=tuple(PINNED.findall(done.stdout)))
    missing = tuple(
        f"{name}=={version}" if name else every for name, version, every in _NO_WHEEL.findall(done.stderr)
    )
    if missing:
        return Outcome(missing=missing)
    reason = next((text for text in _NO_NETWORK if text in done.stderr), "")
    if reason:
        return Outcome(skipped=f"no package index answers ({reason})")
    raise SystemExit(done.stderr)


def of_extra(extra: str) -> list[str]:
    """The core's requirements and an extra's."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements" / "dev.lock")
    parser.add_argument("--extra", default="edge")
    parser.add_argument("--python", action="append", help="Versions; 3.11 where not given.")
    options = parser.parse_args()
    constraints = "\n".join(PINNED.findall(options.lock.read_text()))
    failed = False
    for python in options.python or ["3.11"]:
        found = judge(of_extra(options.extra), python, constraints)
        if found.skipped:
            print(f"Python {python}: skipped, {found.skipped}")
        elif found.missing:
            failed = True
            print(f"Python {python}: no aarch64 wheel of {', '.join(found.missing)}")
        else:
            print(
                f"Python {python}: all {len(found.wheels)} distributions of [{options.extra}] install from wheels on {PLATFORM}"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
