"""SQLite against PostgreSQL under Dagster: events stored a second, by 1, 4 and 8 processes at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import dagster as dg
import pgserver

EVENTS = 200
YAML = """storage:
  custom:
    module: notebooked_dagster.resources.storage
    class: ProjectStorage
    config: {{base_dir: {base}}}
telemetry: {{enabled: false}}
"""


def write(home: str, number: int, start: float, took: multiprocessing.Queue[tuple[float, float]]) -> None:
    """What a run does to the storage: one event after another."""
    os.environ["DAGSTER_HOME"] = home
    with dg.DagsterInstance.get() as instance:
        instance.get_runs_count()
        time.sleep(max(0.0, start - time.time()))
        latencies = []
        for index in range(EVENTS):
            before = time.perf_counter()
            instance.report_runless_asset_event(
                dg.AssetMaterialization(f"asset_{number}", metadata={"index": index})
            )
            latencies.append(time.perf_counter() - before)
        latencies.sort()
        took.put((time.time() - start, latencies[int(len(latencies) * 0.99)]))


def measure(home: str, processes: int) -> tuple[float, float]:
    """Events a second of all together, and the slowest process's p99 in ms."""
    took: multiprocessing.Queue[tuple[float, float]] = multiprocessing.Queue()
    with dg.DagsterInstance.from_config(home) as instance:
        instance.get_runs_count()  # makes the tables: that is no part of what is measured
    start = time.time() + 4 + processes * 0.7
    running = [multiprocessing.Process(target=write, args=(home, n, start, took)) for n in range(processes)]
    for process in running:
        process.start()
    found = [took.get(timeout=100) for _ in running]
    for process in running:
        process.join()
    return processes * EVENTS / max(item[0] for item in found), 1000 * max(item[1] for item in found)


def main() -> None:
    multiprocessing.set_start_method("spawn")
    folder = Path(tempfile.mkdtemp())
    print(f"{'processes':>9}  {'SQLite':>18}  {'PostgreSQL':>18}  ratio")
    with pgserver.get_server(folder / "pg", cleanup_mode="delete") as server:
        for processes in (1, 4, 8):
            row = []
            for kind, url in (("sqlite", ""), ("pg", server.get_uri())):
                home = folder / f"{kind}-{processes}"
                home.mkdir()
                (home / "dagster.yaml").write_text(YAML.format(base=home / "kept"))
                os.environ["NOTEBOOKED_DATABASE_URL"] = url
                row.append(measure(str(home), processes))
            (lite, lite99), (pg, pg99) = row
            print(
                f"{processes:>9}  {lite:>7.0f}/s {lite99:>5.0f} ms  {pg:>7.0f}/s {pg99:>5.0f} ms  {pg / lite:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
