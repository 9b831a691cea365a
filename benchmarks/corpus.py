"""Measure this project on a folder of notebooks that nobody here wrote.

Usage::

    python benchmarks/corpus.py FOLDER [--match TEXT] [--limit N] [--json FILE] [--failures FILE]
    python benchmarks/corpus.py FOLDER --train [--time-limit 120] ...

Every ``.ipynb`` below FOLDER goes through read, analyse and generate; every generated script is compiled and checked by
pyflakes for undefined names. A name that the notebook itself does not define either (pyflakes says so of its cells put
one behind the other) is counted apart, as the notebook's own fault.

With ``--train`` the notebooks whose imports are installed and which name no network address are executed **in their own
folders** (they may write there), each under a time limit and with proxies pointing nowhere; those that run are trained
by their generated ``train.py``, and the scores are compared. One process at a time.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import hashlib
import io
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from notebooked_dagster.codegen import GenerateOptions, generate, write_scripts
from notebooked_dagster.errors import NotebookedError, NoTrainingCodeError, UnsupportedCellError
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Analysis
from notebooked_dagster.notebook.reader import read_notebook

STATIC_LIMIT = 60
"""Seconds one notebook may take to be read, analysed and generated before it counts as hanging."""
_UNDEFINED = re.compile(r":(\d+):\d+:? undefined name '([^']+)'")
_NETWORK = re.compile(
    r"https?://|s3://|gs://|fetch_(openml|california|20news|lfw|olivetti|covtype|rcv1|kddcup|species)|download\s*=\s*True"
    r"|\.datasets\.get_rdataset|load_dataset\(|from_pretrained\(|!\s*(wget|curl|git)\b|input\(",
)
_NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?:[eE][-+]?\d+)?(?![\w.])")


@dataclass
class Outcome:
    """What became of one notebook."""

    path: str
    stage: str = "read"
    ok: bool = False
    refused: str = ""
    crash: str = ""
    where: str = ""
    python: bool = True
    broken_cells: int = 0
    trains: bool = False
    compiled: bool = False
    undefined: dict[str, list[str]] = field(default_factory=dict)
    own_undefined: list[str] = field(default_factory=list)
    milliseconds: float = 0.0
    training: str = ""
    training_detail: str = ""
    scores: dict[str, Any] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    paths = sorted(
        path
        for path in options.folder.rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts and (not options.match or options.match in str(path))
    )
    if options.limit:
        paths = paths[:: max(1, len(paths) // options.limit)]
    outcomes = []
    for number, path in enumerate(paths, start=1):
        outcome = check(path, options)
        outcomes.append(outcome)
        if sys.stderr.isatty() or options.train or number % 200 == 0:
            tail = f"{outcome.training or outcome.stage} {outcome.training_detail}".strip()
            print(f"[{number}/{len(paths)}] {path.relative_to(options.folder)}: {tail}", file=sys.stderr)
        if options.json and (options.train or number % 200 == 0):
            options.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1))
    report = table(outcomes, trained=options.train)
    print(report)
    if options.failures:
        options.failures.write_text(report + "\n" + failures(outcomes))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--match", help="only notebooks whose path contains this text")
    parser.add_argument("--limit", type=int, help="about this many, spread over the folder")
    parser.add_argument("--json", type=Path, help="write every outcome there")
    parser.add_argument("--failures", type=Path, help="write the failures there, grouped by cause")
    parser.add_argument("--train", action="store_true", help="execute and train what can be")
    parser.add_argument(
        "--stand-ins", type=Path, help="a folder on the path of notebooks only: modules for drawing"
    )
    parser.add_argument("--cache", type=Path, help="keep what executing a notebook gave in this folder")
    parser.add_argument("--time-limit", type=int, default=120, help="seconds per notebook and per training")
    return parser


# --- reading, analysing, generating ---------------------------------------------------------------------------------


def check(path: Path, options: argparse.Namespace) -> Outcome:
    """Take one notebook through every stage; never raises for what the notebook is."""
    outcome = Outcome(str(path.relative_to(options.folder)))
    started = time.perf_counter()
    analysis: Analysis | None = None
    scripts: Any = None
    try:
        with _time_limit(STATIC_LIMIT):
            notebook = read_notebook(path)
            outcome.python = notebook.language == "python"
            outcome.stage = "analyse"
            analysis = analyse(notebook)
            outcome.broken_cells = sum(code.error is not None for code in analysis.code)
            outcome.trains = bool(analysis.model_names)
            outcome.stage = "generate"
            scripts = generate(analysis, GenerateOptions(experiment="corpus"))
            outcome.milliseconds = (time.perf_counter() - started) * 1000
            outcome.stage = "done"
            outcome.ok = True
    except NotebookedError as error:
        outcome.refused = type(error).__name__
        outcome.where = error.message[:300]
    except Exception as error:
        outcome.crash = f"{type(error).__name__}: {str(error)[:200]}"
        frames = traceback.extract_tb(error.__traceback__)
        outcome.where = " < ".join(
            f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-3:])
        )
    if scripts is not None and analysis is not None:
        _check_scripts(outcome, analysis, scripts.files)
        if options.train:
            _train(outcome, path, analysis, scripts, options)
    return outcome


def _check_scripts(outcome: Outcome, analysis: Analysis, files: Any) -> None:
    outcome.compiled = True
    own = set(undefined_names(_whole_notebook(analysis)))
    for name, text in sorted(files.items()):
        if not name.endswith(".py"):
            continue
        try:
            compile(text, name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            outcome.compiled = False
            line = getattr(error, "lineno", 0) or 0
            shown = text.splitlines()[line - 1].strip()[:100] if 0 < line <= len(text.splitlines()) else ""
            outcome.crash = f"{name} does not compile: {error.args[0]}"
            outcome.where = f"line {line}: {shown}"
            continue
        missing = undefined_names(text)
        ours = [one for one in missing if one not in own]
        if ours:
            outcome.undefined[name] = sorted(set(ours))
        outcome.own_undefined = sorted({*outcome.own_undefined, *(one for one in missing if one in own)})


def _whole_notebook(analysis: Analysis) -> str:
    return "\n".join(code.source for code in analysis.code if code.tree is not None)


def undefined_names(text: str) -> list[str]:
    """The names that pyflakes calls undefined; a star import silences it, which is pyflakes' own rule."""
    from pyflakes.api import check as pyflakes_check
    from pyflakes.reporter import Reporter

    output = io.StringIO()
    try:
        pyflakes_check(text, "script.py", Reporter(output, output))
    except RecursionError:
        return []
    return [match.group(2) for match in _UNDEFINED.finditer(output.getvalue())]


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def late(_number: int, _frame: Any) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- executing and training -----------------------------------------------------------------------------------------

_SEED = "import random as _r; _r.seed({seed})\nimport numpy as _n; _n.random.seed({seed})\n"
_DUMP = """
import json as _j, numbers as _m
_d = {}
for _k, _v in list(globals().items()):
    if not _k.startswith("_"):
        try:
            if getattr(_v, "shape", None) == ():
                _v = _v.item()
            if isinstance(_v, _m.Real) and not isinstance(_v, bool):
                _d[_k] = float(_v)
            elif isinstance(_v, (list, tuple)) and _v and isinstance(_v[-1], _m.Real):
                _d[_k + "[-1]"], _d["mean " + _k] = float(_v[-1]), float(sum(_v)) / len(_v)
        except Exception:
            pass
print("NOTEBOOKED-NAMESPACE " + _j.dumps(_d))
"""


def _train(
    outcome: Outcome, path: Path, analysis: Analysis, scripts: Any, options: argparse.Namespace
) -> None:
    reason = _unfit(analysis, options.stand_ins)
    if reason:
        outcome.training, outcome.training_detail = "unfit", reason
        return
    with tempfile.TemporaryDirectory(prefix="corpus-") as name:
        work = Path(name)
        write_scripts(scripts, work / "scripts")
        theirs = _executed(path, work, options, seed=0)
        if theirs is None:
            outcome.training = "notebook does not run here"
            return
        done = _run_train(work, path.resolve().parent, options.time_limit)
        if isinstance(done, str):
            outcome.training, outcome.training_detail = "train.py failed", done
            return
        metrics, printed = done
        outcome.scores = {"metrics": metrics}
        wrong = _different(metrics, printed, theirs)
        if not wrong and not metrics:
            outcome.training = "trained, no metric"
        elif not wrong:
            outcome.training = "score equal"
        else:
            again = _run_train(work, path.resolve().parent, options.time_limit, seed=1)
            random = isinstance(again, str) or any(
                not _close(again[0].get(name, math.nan), value) for name, value in wrong.items()
            )
            outcome.training = "score differs, moves with the seed" if random else "score differs"
            outcome.training_detail = json.dumps({k: [v, theirs[0].get(k)] for k, v in wrong.items()})[:300]


def _unfit(analysis: Analysis, stand_ins: Path | None) -> str:
    if not analysis.model_names:
        return "trains nothing"
    text = "\n".join(cell.source for cell in analysis.notebook.code_cells)
    network = _NETWORK.search(text)
    if network:
        return f"network: {network.group(0)}"
    for code in analysis.code:
        if code.unsupported:
            return "shell"
        for node in ast.walk(code.tree) if code.tree is not None else ():
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            for module in modules:
                root = module.partition(".")[0]
                if (
                    root
                    and root not in sys.stdlib_module_names
                    and not _installed(root, analysis.notebook.path, stand_ins)
                ):
                    return f"not installed: {root}"
    return ""


def _installed(root: str, notebook: Path, stand_ins: Path | None) -> bool:
    folders = [notebook.resolve().parent, *([stand_ins] if stand_ins else [])]
    return find_spec(root) is not None or any(
        (folder / f"{root}.py").exists() or (folder / root).is_dir() for folder in folders
    )


def _executed(
    path: Path, work: Path, options: argparse.Namespace, *, seed: int
) -> tuple[dict[str, float], str] | None:
    """What ``_execute`` gives, from the cache where the same notebook ran before."""
    if options.cache is None:
        return _execute(path, work, options, seed=seed)
    digest = hashlib.sha256(path.read_bytes() + str(path.resolve()).encode()).hexdigest()[:24]
    kept = options.cache / f"{digest}-{seed}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(_execute(path, work, options, seed=seed)))
    result = json.loads(kept.read_text())
    return None if result is None else (result[0], result[1])


def _execute(
    path: Path, work: Path, options: argparse.Namespace, *, seed: int
) -> tuple[dict[str, float], str] | None:
    """Run the notebook; the numbers of its namespace and all it printed. None where it does not run."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    first = nbformat.v4.new_code_cell(_SEED.format(seed=seed))
    last = nbformat.v4.new_code_cell(_DUMP)
    notebook.cells = [first, *notebook.cells, last]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    source, result = work / "in.ipynb", work / f"out{seed}.ipynb"
    nbformat.write(notebook, source)
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(path.resolve().parent)]
    variables = {"PYTHONPATH": str(options.stand_ins.resolve())} if options.stand_ins else {}
    done = _run([*command, "-k", "python3", str(source), str(result)], work, options.time_limit, variables)
    if done.returncode != 0:
        return None
    texts = []
    for cell in json.loads(result.read_text())["cells"]:
        for output in cell.get("outputs", ()):
            data = output.get("text") or output.get("data", {}).get("text/plain") or ""
            texts.append("".join(data))
    everything = "\n".join(texts)
    found = re.search(r"NOTEBOOKED-NAMESPACE (.*)", everything)
    return (json.loads(found.group(1)) if found else {}, everything)


def _run_train(
    work: Path, folder: Path, seconds: int, *, seed: int = 0
) -> tuple[dict[str, float], str] | str:
    variables = {"NOTEBOOKED_NOTEBOOK_DIR": str(folder)}
    options = ["--model-dir", str(work / "model"), "--output-dir", str(work / "output"), "--seed", str(seed)]
    done = _run([sys.executable, str(work / "scripts" / "train.py"), *options], work, seconds, variables)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"exit code {done.returncode}"
    metrics = work / "output" / "metrics.json"
    return (json.loads(metrics.read_text()) if metrics.exists() else {}, done.stdout)


def _run(
    command: list[str], work: Path, seconds: int, extra: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    nowhere = "http://127.0.0.1:9"
    environment = {**os.environ, "MPLBACKEND": "Agg", "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, **extra}
    environment |= {"http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": "localhost,127.0.0.1"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with subprocess.Popen(
        command,
        cwd=work,
        env=environment,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            stderr += "\ntime limit"
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _different(
    metrics: dict[str, float], printed: str, theirs: tuple[dict[str, float], str]
) -> dict[str, float]:
    """The metrics that are neither a variable of that value in the notebook nor a number it printed."""
    return {
        key: value
        for key, value in metrics.items()
        if isinstance(value, int | float) and not _known(key, value, theirs)
    }


def _known(key: str, value: float, theirs: tuple[dict[str, float], str]) -> bool:
    namespace, text = theirs
    if key in namespace and _close(namespace[key], value):
        return True
    if any(_close(number, value) for number in namespace.values()):
        return True
    for match in _NUMBER.finditer(text):
        digits = len(match.group(0).partition(".")[2].partition("e")[0])
        shown = float(match.group(0))
        if abs(shown - value) <= 0.51 * 10.0**-digits + 1e-6 * abs(value):
            return True
        # The notebook shows the root of the error that the script names.
        if digits >= 4 and abs(shown * shown - value) <= 2 * abs(shown) * 10.0**-digits + 1e-6 * abs(value):
            return True
    return False


def _close(first: float, second: float) -> bool:
    return (
        first == second
        or (first != first and second != second)
        or abs(first - second) <= 1e-6 * max(abs(first), abs(second), 1e-9)
    )


# --- reporting ------------------------------------------------------------------------------------------------------


def table(outcomes: Sequence[Outcome], *, trained: bool) -> str:
    """The counts of every stage, as Markdown."""
    done = [one for one in outcomes if one.ok]
    refused = collections.Counter(one.refused for one in outcomes if one.refused)
    crashed = [one for one in outcomes if one.crash]
    rows: list[tuple[str, int]] = [
        ("notebooks", len(outcomes)),
        ("read and analysed", sum(one.stage in {"generate", "done"} for one in outcomes)),
        ("with a cell that does not parse", sum(one.broken_cells > 0 for one in outcomes)),
        ("with a model found", sum(one.trains for one in outcomes)),
        ("converted", len(done)),
        *[(f"refused: {name}", count) for name, count in refused.most_common()],
        ("crashed", len(crashed)),
        ("every script compiles", sum(one.compiled for one in done)),
        ("no undefined name of ours", sum(one.compiled and not one.undefined for one in done)),
        ("an undefined name of the notebook's own", sum(bool(one.own_undefined) for one in done)),
    ]
    if trained:
        rows += [
            (f"training: {name}", count)
            for name, count in collections.Counter(one.training for one in done if one.training).most_common()
        ]
    times = [one.milliseconds for one in done]
    lines = ["| stage | notebooks |", "|---|---|", *[f"| {name} | {count} |" for name, count in rows]]
    if times:
        median, worst = statistics.median(times), max(times)
        lines.append(f"\nRead + analyse + generate: median {median:.1f} ms, worst {worst:.0f} ms.")
    return "\n".join(lines)


def failures(outcomes: Sequence[Outcome]) -> str:
    """Failures grouped by cause, most frequent first."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for one in outcomes:
        if one.crash:
            groups[f"CRASH {one.crash.partition(':')[0]} | {one.where.partition(' < ')[0]}"].append(
                f"{one.path} | {one.crash} | {one.where}"
            )
        if one.refused and one.refused not in {NoTrainingCodeError.__name__, UnsupportedCellError.__name__}:
            groups[f"REFUSED {one.refused} {re.sub('[0-9]+', 'N', one.where)[:80]}"].append(
                f"{one.path} | {one.where}"
            )
        for script, names in one.undefined.items():
            groups[f"UNDEFINED in {script}"].append(f"{one.path} | {' '.join(names)}")
        if one.training in {"train.py failed", "score differs"}:
            key = re.sub(r"'[^']*'|[0-9]+", "…", one.training_detail)[:60] if "failed" in one.training else ""
            groups[f"TRAIN {one.training} {key}"].append(f"{one.path} | {one.training_detail}")
    parts = []
    for cause, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        parts.append(f"\n## {len(members)}x {cause}\n")
        parts += [f"- {member}" for member in members[:25]]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
