"""The training process: started with limits, watched, and stopped with everything it started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from notebooked_dagster.serving.processes import alive
from notebooked_dagster.serving.state import ProcessIdentity

# In the environment of every process of a job: by it what the job left behind is found, whatever session it is in.
MARK = "NOTEBOOKED_JOB"
_PR_SET_PDEATHSIG = 1
_TICK = 0.2
_MEMORY_EVERY = 0.5


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended.

    Attributes:
        exit_code: Negative for a signal.
        reason: ``exit``, or why it was stopped: ``cancel``, ``timeout`` or ``memory``.
        oom_kills: How many processes the kernel killed for want of memory in this control group meanwhile.
        peak_memory: The most that the whole tree held, in bytes, as far as it was looked at.
    """

    exit_code: int
    reason: str = "exit"
    oom_kills: int = 0
    peak_memory: int = 0


class Supervised:
    """One process in a session of its own.

    Args:
        arguments: The command.
        log: Its output is appended here: straight to the file, so that a watcher's pace never holds it up.
        environment: All of it.
        cwd: Its working folder.
        memory_limit: Bytes that the whole tree may hold, and each process may allocate; None for no limit.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        cwd: Path,
        memory_limit: int | None = None,
    ) -> None:
        self._memory_limit = memory_limit
        self._oom_before = oom_kills()
        self._peak = 0
        self._group_mark = environment.get(MARK)
        libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

        def prepare() -> None:
            # Runs in the child, between fork and exec. The runner has one thread only, which makes this safe.
            if libc is not None:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if memory_limit is not None:
                resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))

        with log.open("ab") as stream:
            self._popen = subprocess.Popen(
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=prepare,
            )

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's and session's."""
        return self._popen.pid

    def wait(
        self,
        *,
        deadline: float | None,
        stop_asked: Callable[[], bool],
        grace: float,
        tick: Callable[[], None],
    ) -> Ending:
        """Wait until it has ended, or end it.

        Args:
            deadline: On the monotonic clock; None for no limit.
            stop_asked: Whether somebody wants it to stop.
            grace: Seconds between SIGTERM and SIGKILL.
            tick: Called several times a second.
        """
        reason = "exit"
        next_look = 0.0
        while self._popen.poll() is None:
            now = time.monotonic()
            if stop_asked():
                reason = "cancel"
            elif deadline is not None and now >= deadline:
                reason = "timeout"
            elif now >= next_look:
                next_look = now + _MEMORY_EVERY
                if self._over_memory():
                    reason = "memory"
            if reason != "exit":
                self._stop(0.0 if reason == "memory" else grace)
                break
            tick()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_TICK)
        code = self._popen.wait()
        self._clear()
        return Ending(code, reason, max(0, oom_kills() - self._oom_before), self._peak)

    def kill(self) -> None:
        """End it and all that it started, now."""
        self._stop(0.0)
        self._clear()

    def _stop(self, grace: float) -> None:
        if grace > 0:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace)
        self._signal(signal.SIGKILL)
        self._popen.wait()

    def _clear(self) -> None:
        # Its number stays taken as long as the group has a member, so this cannot hit anybody else's.
        self._signal(signal.SIGKILL)
        if self._group_mark is not None:
            kill_marked(self._group_mark)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _over_memory(self) -> bool:
        used = 0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            for member in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    used += member.memory_info().rss
        self._peak = max(self._peak, used)
        return self._memory_limit is not None and used > self._memory_limit


def oom_kills() -> int:
    """How many processes the kernel has killed in this control group for want of memory; 0 where unknown."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0
    total = 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            file = Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            file = Path("/sys/fs/cgroup/memory") / path.lstrip("/") / "memory.oom_control"
        else:
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            for entry in file.read_text().splitlines():
                if entry.startswith("oom_kill "):
                    total += int(entry.split()[1])
    return total


def kill_marked(mark: str) -> int:
    """Kill every process that carries a job's mark; returns how many there were."""
    killed = 0
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                killed += 1
    return killed


def kill_abandoned(trainer: ProcessIdentity | None, mark: str) -> None:
    """End what a dead runner left: the trainer, its group, and whatever carries the job's mark."""
    if trainer is not None and alive(trainer):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(trainer.pid, signal.SIGKILL)
    kill_marked(mark)
