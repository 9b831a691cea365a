"""What our share of loading a code location is, and what a sensor's look at ten thousand notebooks costs.

Beside each code location stands the same number of trivial assets, checks and jobs, written by hand in one Python file
or as a trivial component with a ``defs.yaml`` each: what Dagster itself costs either way. Run: ``python benchmarks/bench_code_location.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import ModuleType

import dagster as dg

SIZES = (1, 100, 1000)
NOTEBOOKS = 10_000
_CELLS = {
    "cells": [
        {"cell_type": "markdown", "metadata": {}, "source": "# A notebook\n\nWith a description."},
        {
            "cell_type": "code",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": "from sklearn.linear_model import Ridge\nmodel = Ridge()\nmodel.fit([[1.0]], [1.0])",
        },
    ],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 4,
}


def ours(root: Path) -> float:
    """Seconds to build the definitions of a project and its repository."""
    os.environ["NOTEBOOKED_PROJECT_ROOT"] = str(root)
    from notebooked_dagster.definitions import project_definitions
    from notebooked_dagster.resources import Workplace

    started = time.perf_counter()
    project_definitions(Workplace.here()).get_repository_def()
    return time.perf_counter() - started


def hand_written(name: str) -> dg.Definitions:
    """As many assets, checks and jobs as one of our experiments has, with nothing in them."""

    def spec(part: str, *deps: str) -> dg.AssetSpec:
        return dg.AssetSpec([name, part], deps=[dg.AssetKey([name, dep]) for dep in deps], group_name=name)

    def check(part: str, kind: str) -> dg.AssetCheckSpec:
        return dg.AssetCheckSpec(kind, asset=dg.AssetKey([name, part]))

    @dg.multi_observable_source_asset(
        name=f"{name}__notebook",
        specs=[spec("notebook")],
        check_specs=[check("notebook", "a"), check("notebook", "b")],
    )
    def notebook(context): ...

    @dg.multi_asset(name=f"{name}__scripts", specs=[spec("x", "notebook"), spec("y", "notebook")])
    def scripts(context): ...

    @dg.multi_asset(name=f"{name}__model", specs=[spec("model", "x")])
    def model(context): ...

    @dg.multi_asset(name=f"{name}__endpoint", specs=[spec("endpoint", "model", "y")])
    def endpoint(context): ...

    @dg.multi_asset_check(
        name=f"{name}__checks", specs=[check("endpoint", "a"), check("endpoint", "b")], can_subset=True
    )
    def checks(context): ...

    @dg.multi_asset_check(name=f"{name}__parity", specs=[check("model", "a")])
    def parity(context): ...

    return dg.Definitions(
        assets=[notebook, scripts, model, endpoint],
        asset_checks=[checks, parity],
        jobs=[
            dg.define_asset_job(f"{name}_{kind}job", dg.AssetSelection.groups(name))
            for kind in ("", "train_", "parity_")
        ],
    )


class HandWritten(dg.Component, dg.Model, dg.Resolvable):
    """The same as a component with a defs.yaml, which is what Dagster's own machinery for them costs."""

    notebook: str

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """What it stands for."""
        return hand_written(context.path.name)


def trivial(count: int) -> float:
    """Seconds for as many of them in one Python file."""
    started = time.perf_counter()
    dg.Definitions.merge(*(hand_written(f"e{number}") for number in range(count))).get_repository_def()
    return time.perf_counter() - started


def components(root: Path) -> float:
    """Seconds for as many of them with a defs.yaml each."""
    from dagster.components.core.component_tree import ComponentTree

    started = time.perf_counter()
    module = ModuleType("bench_assets")
    module.__file__ = None
    module.__path__ = [str(root / "assets")]
    sys.modules[module.__name__] = module
    ComponentTree.from_module(module, root).build_defs().get_repository_def()
    return time.perf_counter() - started


def make_project(
    root: Path, count: int, *, config: bool, kind: str = "notebooked_dagster.NotebookExperiment"
) -> None:
    """Experiments in one config.yaml, or a defs.yaml each."""
    (root / "notebooks").mkdir(parents=True)
    for number in range(count):
        (root / "notebooks" / f"e{number}.ipynb").write_text(json.dumps(_CELLS))
    if config:
        lines = "".join(
            f"  - name: e{number}\n    notebook: notebooks/e{number}.ipynb\n" for number in range(count)
        )
        (root / "config.yaml").write_text(f"experiments:\n{lines}")
    for number in range(0 if config else count):
        folder = root / "assets" / f"e{number}"
        folder.mkdir(parents=True)
        (folder / "defs.yaml").write_text(
            f"type: {kind}\nattributes:\n  notebook: notebooks/e{number}.ipynb\n"
        )


def measured(*arguments: str, rounds: int = 3) -> float:
    """The median of several fresh processes."""
    times = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, *arguments], capture_output=True, text=True, check=True
        )
        times.append(float(done.stdout.split()[-1]))
    return median(times)


def code_locations(sizes: list[int]) -> None:
    """The table of load times."""
    print(
        f"{'experiments':>11} | {'by hand':>8} {'config.yaml':>11} {'our share':>13} | "
        f"{'components':>10} {'defs.yaml':>9} {'our share':>13}   (target 1 ms/exp)"
    )
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            one, many, peer = Path(folder) / "one", Path(folder) / "many", Path(folder) / "peer"
            make_project(one, size, config=True)
            make_project(many, size, config=False)
            make_project(peer, size, config=False, kind="bench_code_location.HandWritten")
            for root in (one, many):
                # Fills the index of descriptions, as any earlier load has.
                measured("--ours", str(root), rounds=1)
            rounds = 5 if size < 1000 else 3
            by_hand = measured("--trivial", str(size), rounds=rounds)
            config = measured("--ours", str(one), rounds=rounds)
            parts = measured("--components", str(peer), rounds=rounds)
            files = measured("--ours", str(many), rounds=rounds)
        print(
            f"{size:>11} | {by_hand:>7.3f}s {config:>10.3f}s {(config - by_hand) / size * 1000:>6.2f} ms/exp | "
            f"{parts:>9.3f}s {files:>8.3f}s {(files - parts) / size * 1000:>6.2f} ms/exp",
            flush=True,
        )


def sensor_ticks(count: int) -> None:
    """The table of looks."""
    from notebooked_dagster.config import ExperimentConfig
    from notebooked_dagster.sensors.watch import NotebookWatch, Recorded, Watched

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "notebooks").mkdir()
        watched = []
        for number in range(count):
            path = root / "notebooks" / f"e{number}.ipynb"
            path.write_text(json.dumps(_CELLS))
            config = ExperimentConfig.model_validate({"name": f"e{number}", "notebook": str(path)})
            watched.append(Watched(config, path))
        watch = NotebookWatch(watched, root / "state", root / "notebooks")

        def look(cursor: str | None) -> tuple[float, str]:
            started = time.perf_counter()
            found = watch.look(cursor, lambda _: Recorded())
            return (time.perf_counter() - started) * 1000, found.generation

        first, cursor = look(None)
        after_restart, cursor = look(cursor)
        none = median(look(cursor)[0] for _ in range(5))
        (root / "notebooks" / "e7.ipynb").write_text(json.dumps(_CELLS).replace("Ridge()", "Ridge(2.0)"))
        one, cursor = look(cursor)
        again, cursor = look(cursor)
        started = time.perf_counter()
        for item in watched:
            item.path.stat()
        peer = (time.perf_counter() - started) * 1000
    print(f"\nA look at {count} notebooks")
    print(f"  first, every one analysed         {first:>9.1f} ms")
    print(f"  none changed, new process         {after_restart:>9.1f} ms")
    print(
        f"  none changed                      {none:>9.1f} ms   (target 150; peer: Path.stat of each {peer:.1f} ms)"
    )
    print(f"  one changed                       {one:>9.1f} ms")
    print(f"  none changed after that           {again:>9.1f} ms")


def main() -> None:
    """All of it, or one measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", type=Path)
    parser.add_argument("--trivial", type=int)
    parser.add_argument("--components", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--notebooks", type=int, default=NOTEBOOKS)
    asked = parser.parse_args()
    if asked.ours is not None:
        print(ours(asked.ours))
    elif asked.trivial is not None:
        print(trivial(asked.trivial))
    elif asked.components is not None:
        print(components(asked.components))
    else:
        code_locations(asked.sizes)
        sensor_ticks(asked.notebooks)


if __name__ == "__main__":
    main()
