"""The small process that owns a training job: ``python -m notebooked_dagster.providers.local.runner FOLDER``.

It is detached from whoever asked for the training, so that a job ends with its exit code, duration and MLflow
status recorded even where nobody waits, or the process that waited was killed. It is the only writer of
``job.json`` while it lives. What must not lie on disk (the job's environment) comes as JSON on standard input.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.providers import jobs
from notebooked_dagster.providers.base import JobStatus
from notebooked_dagster.providers.failures import Failure, Outcome, read_metrics
from notebooked_dagster.providers.jobs import Handover
from notebooked_dagster.providers.pipes import PROCESS
from notebooked_dagster.providers.run_tracking import RunTracking
from notebooked_dagster.serving.processes import identify

from . import outcome, venv
from .process import MARK, Ending, Supervised

_HEARTBEAT_EVERY = 2.0


class Runner:
    """Takes one job from its start to its end."""

    def __init__(self, folder: Path, handover: Handover) -> None:
        self.folder = folder
        self.handover = handover
        self.spec = jobs.read_spec(folder)
        self.record = jobs.read(folder)
        self.tracking = RunTracking(self.record, self.spec, folder, handover.tracking_uri, say=self.say)
        self._stop = False
        self._current: Supervised | None = None
        self._beat = 0.0

    def own(self) -> None:
        """Take the job over: from here on its state is this process's business."""
        signal.signal(signal.SIGTERM, self._on_term)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.record.runner = identify(os.getpid())
        self.record.status = JobStatus.RUNNING
        self.record.started_at = datetime.now(UTC)
        self._heartbeat()
        self._save()

    def run(self) -> None:
        """Train, and write down how it ended, whatever happens."""
        result = Outcome(JobStatus.KILLED)
        try:
            result = self._train()
        except NotebookedError as error:
            result = Outcome(
                JobStatus.FAILED,
                Failure(error=type(error).__name__, message=error.message, hint=error.hint or ""),
            )
        except BaseException as error:
            result = Outcome(
                JobStatus.FAILED,
                Failure(
                    error="InternalError",
                    message=f"The runner of the training job failed: {type(error).__name__}: {error}",
                    hint=f"{self.folder / 'runner.log'} has the details.",
                ),
            )
            if self._current is not None:
                self._current.kill()
            with contextlib.suppress(OSError):
                traceback.print_exc()
        finally:
            self._finish(result)

    def say(self, text: str) -> None:
        """Add a line of our own to the job's log."""
        with contextlib.suppress(OSError), (self.folder / "log.txt").open("ab") as stream:
            stream.write(f"[notebooked] {text}\n".encode())

    def _train(self) -> Outcome:
        began = time.monotonic()
        deadline = None if self.spec.timeout is None else began + self.spec.timeout
        tracking_environment = self.tracking.start()
        self._save()
        python = self.spec.python
        if self.spec.own_environment:
            built: list[Ending] = []
            try:
                python = str(
                    venv.environment_python(
                        self.folder / "code",
                        self.handover.cache / "environments",
                        log=self.folder / "log.txt",
                        run=lambda step, env: self._build_step(step, env, deadline, built),
                        say=self.say,
                        build_env=self.handover.build_environment,
                    )
                )
                if tracking_environment and not venv.has_package(Path(python), "mlflow"):
                    self.say(
                        "the environment has no mlflow: what train.py does not log itself is logged for it"
                    )
                    tracking_environment = {}
                self.spec.python = python
                jobs.write_spec(self.folder, self.spec)
            except NotebookedError:
                if built and built[-1].reason != "exit":
                    return outcome.judge(built[-1], self.spec, self.folder)
                raise
        script = [str(self.folder / "code" / "train.py")]
        if self.spec.pipes:
            script.insert(0, str(self.folder / "pipes" / PROCESS))
        ending = self._supervise(
            [python, "-u", *script, *self.spec.arguments],
            {**self.handover.environment, **tracking_environment},
            deadline,
            trainer=True,
        )
        self._mask_log()
        # Python keeps what it has compiled of packages for the next training. Of the scripts it is in nobody's way, but no result.
        for cache in (self.folder / "code").rglob("__pycache__"):
            shutil.rmtree(cache, ignore_errors=True)
        self.record.exit_code = ending.exit_code
        return outcome.judge(ending, self.spec, self.folder)

    def _mask_log(self) -> None:
        """What the job was told in secret and printed all the same is not kept, here or in MLflow."""
        REDACTOR.add_environment(self.handover.environment)
        for secret in self.handover.secrets:
            REDACTOR.add(secret)
        with contextlib.suppress(OSError):
            if count := REDACTOR.redact_file(self.folder / "log.txt"):
                self.say(f"{count} times the output held a secret of the environment; it is masked.")
            for messages in (self.folder / "pipes" / "messages").glob("*.json"):
                REDACTOR.redact_file(messages)

    def _build_step(
        self,
        step: Sequence[str],
        environment: Mapping[str, str],
        deadline: float | None,
        endings: list[Ending],
    ) -> int:
        endings.append(self._supervise(step, {**environment, MARK: str(self.folder)}, deadline))
        return endings[-1].exit_code if endings[-1].reason == "exit" else -signal.SIGTERM

    def _supervise(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        deadline: float | None,
        *,
        trainer: bool = False,
    ) -> Ending:
        if self._stop:
            return Ending(-signal.SIGTERM, "cancel")
        self._current = Supervised(
            arguments,
            log=self.folder / "log.txt",
            environment=environment,
            cwd=self.folder / "work",
            memory_limit=self.spec.memory_limit if trainer else None,
        )
        if trainer:
            self.record.trainer = identify(self._current.pid)
            self._save()
        ending = self._current.wait(
            deadline=deadline, stop_asked=lambda: self._stop, grace=self.spec.stop_grace, tick=self._heartbeat
        )
        self._current = None
        return ending

    def _finish(self, result: Outcome) -> None:
        record = self.record
        record.metrics, complaint = read_metrics(self.folder)
        if complaint:
            self.say(complaint)
        if result.status is JobStatus.SUCCEEDED:
            record.model_uri = str(self.folder / "model")
        try:
            self.tracking.finish(result.status)
        except NotebookedError as error:
            # Only where tracking is required: the model is kept, but the job has not done all it was asked.
            if result.status is JobStatus.SUCCEEDED:
                result = Outcome(
                    JobStatus.FAILED,
                    Failure(error=type(error).__name__, message=error.message, hint=error.hint or ""),
                )
        record.status, record.failure = result.status, result.failure
        record.finished_at = datetime.now(UTC)
        self._save(final=True)

    def _save(self, *, final: bool = False) -> None:
        try:
            jobs.write(self.folder, self.record)
        except OSError as error:
            # The next write may succeed; only the last one must.
            self.say(f"job.json cannot be written: {error}")
            if final:
                raise

    def _heartbeat(self) -> None:
        now = time.monotonic()
        if now - self._beat >= _HEARTBEAT_EVERY:
            self._beat = now
            with contextlib.suppress(OSError):
                (self.folder / "heartbeat").touch()

    def _on_term(self, *_: object) -> None:
        self._stop = True


def detach() -> None:
    """Leave the starter's process tree and session; the first process ends, its child goes on."""
    if os.fork():
        os._exit(0)
    os.setsid()


def main(arguments: Sequence[str]) -> None:
    """Run one job; says ``ready`` on standard output when the starter need not care any more."""
    handover = Handover.model_validate_json(sys.stdin.buffer.read())
    detach()
    runner = Runner(Path(arguments[0]), handover)
    runner.own()
    os.write(1, b"ready\n")
    with Path(os.devnull).open("rb+") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    runner.run()
    # All is written; MLflow's threads would keep the process for a while.
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
