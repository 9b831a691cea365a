"""The device's own instance, opened in this process. Whole runs over SSH are in test_real_run.py."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from notebooked_dagster.edge.recording import instance_folder, opened


def test_the_first_runs_of_a_device_may_start_at_the_same_time(tmp_path: Path) -> None:
    home, together = instance_folder(tmp_path), threading.Barrier(2)

    def first(_: int) -> int:
        together.wait()
        with opened(home) as instance:
            return instance.get_runs_count()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(first, range(2))) == [0, 0]
