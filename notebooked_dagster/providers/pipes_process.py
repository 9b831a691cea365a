"""Run ``train.py`` with Dagster Pipes open; sent with the scripts, and needs nothing but Python and ``dagster_pipes``.

``python notebooked_pipes.py TRAIN ARGUMENT…``, with Dagster's variables in the environment: ``DAGSTER_PIPES_CONTEXT`` names a
file, ``DAGSTER_PIPES_MESSAGES`` a folder (``folder``; a mounted bucket is one) or a place in S3 (``bucket``, ``key_prefix``).
Without ``dagster_pipes``, or where the place cannot be reached, it trains all the same and says so.
"""

import importlib
import io
import os
import runpy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Every this many seconds what was reported is sent.
INTERVAL = float(os.environ.get("NOTEBOOKED_PIPES_INTERVAL") or 5)
VARIABLES = ("DAGSTER_PIPES_CONTEXT", "DAGSTER_PIPES_MESSAGES")


def opened() -> Any:
    """The context of Dagster Pipes, open; None where there is none."""
    if not all(os.environ.get(name) for name in VARIABLES):
        return None
    try:
        pipes: Any = importlib.import_module("dagster_pipes")
        loader = pipes.PipesEnvVarParamsLoader()
        place = loader.load_messages_params()
        writer = folder_writer(pipes) if "folder" in place else s3_writer(pipes, place)
        context = context_class(pipes)(loader, pipes.PipesDefaultContextLoader(), writer)
        pipes.PipesContext.set(context)
        return context
    except Exception as error:
        print(f"[notebooked] Without Dagster Pipes: {type(error).__name__}: {error}", flush=True)
        # Who opens it in the notebook gets the stand-in that does nothing.
        for name in VARIABLES:
            os.environ.pop(name, None)
        return None


def context_class(pipes: Any) -> Any:
    """A context that is closed once, at the end: ``with open_dagster_pipes()`` in one cell leaves it open for the next."""

    class Context(pipes.PipesContext):  # type: ignore[misc]
        ended = False

        def close(self, exc: Any = None) -> None:
            if self.ended:
                super().close(exc)

    return Context


@contextmanager
def reporting() -> "Iterator[None]":
    """What is reported in here is sent, how it ended as well."""
    context = opened()
    if context is None:
        yield
        return
    tell_metrics(context)
    with context:
        try:
            yield
        finally:
            context.ended = True


def folder_writer(pipes: Any) -> Any:
    """Writes numbered files, each of which appears when it is whole."""

    class Channel(pipes.PipesBlobStoreMessageWriterChannel):  # type: ignore[misc]
        def __init__(self, folder: str) -> None:
            super().__init__(interval=INTERVAL)
            self.folder = folder

        def upload_messages_chunk(self, payload: Any, index: int) -> None:
            path = os.path.join(self.folder, f"{index}.json")
            half = os.path.join(self.folder, f".{index}.half")
            with open(half, "w", encoding="utf-8") as stream:
                stream.write(payload.read())
            os.replace(half, path)

    class Writer(pipes.PipesBlobStoreMessageWriter):  # type: ignore[misc]
        def make_channel(self, params: Any) -> Any:
            folder = params["folder"]
            os.makedirs(folder, exist_ok=True)
            said = 0
            while os.path.exists(os.path.join(folder, f"{said + 1}.json")):
                said += 1
            return going_on(Channel(folder), said)

    return Writer(interval=INTERVAL)


def s3_writer(pipes: Any, place: Any) -> Any:
    """Writes numbered objects."""
    import boto3

    client = boto3.client("s3", region_name=place.get("region"), endpoint_url=place.get("endpoint_url"))

    class Writer(pipes.PipesS3MessageWriter):  # type: ignore[misc]
        def make_channel(self, params: Any) -> Any:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=params["bucket"], Prefix=params["key_prefix"] + "/"
            )
            return going_on(super().make_channel(params), sum(page.get("KeyCount", 0) for page in pages))

    return Writer(client, interval=INTERVAL)


def going_on(channel: Any, said: int) -> Any:
    """The channel, which goes on after so many messages: a machine that was taken away and started again has said some.

    What cannot be sent is sent with what follows. To Dagster's loop, which sends, it would be the end of all that is told.
    """
    upload, unsent = channel.upload_messages_chunk, ""

    def send(payload: Any, index: int) -> None:
        nonlocal said, unsent
        text = unsent + payload.read()
        try:
            upload(io.StringIO(text), index + said)
        except Exception as error:
            if not unsent:
                print(f"[notebooked] Not told yet: {type(error).__name__}: {error}", flush=True)
            unsent, said = f"{text}\n", said - 1
        else:
            unsent = ""

    channel.upload_messages_chunk = send
    return channel


def tell_metrics(context: Any) -> None:
    """Have the scripts' metrics, and what MLflow's autologging notes of each epoch, told as they come."""
    try:
        import script_support  # type: ignore[import-not-found]
    except ImportError:
        return
    noted, start_tracking = script_support.metric, script_support.start_tracking

    def tell(name: str, value: float, step: "int | None" = None) -> None:
        message = {"notebooked": "metric", "name": name, "value": float(value), "step": step}
        context.report_custom_message(message)

    def metric(name: str, value: Any) -> Any:
        result = noted(name, value)
        for key, number in script_support._numbers(name, value):
            tell(key, number)
        return result

    def logged(name: str, value: float, step: "int | None") -> None:
        # The script's own metrics go to MLflow once more, at the end.
        if step or name not in script_support.metrics():
            tell(name, value, step or 0)

    def tracking() -> None:
        start_tracking()
        if "mlflow" in sys.modules:
            follow_autolog(sys.modules["mlflow"].MlflowClient, logged)

    script_support.metric, script_support.start_tracking = metric, tracking


def follow_autolog(client: Any, tell: Any) -> None:
    """Have every metric that MLflow is handed told as well."""
    log_batch, log_metric = client.log_batch, client.log_metric

    def batch(self: Any, run_id: str, metrics: Any = (), *rest: Any, **more: Any) -> Any:
        for item in metrics or ():
            tell(item.key, item.value, item.step)
        return log_batch(self, run_id, metrics, *rest, **more)

    def one(
        self: Any, run_id: str, key: str, value: Any, timestamp: Any = None, step: Any = None, **more: Any
    ) -> Any:
        tell(key, value, step)
        return log_metric(self, run_id, key, value, timestamp, step, **more)

    client.log_batch, client.log_metric = batch, one


def main(script: str, *arguments: str) -> None:
    """Run the script; its exit code and its traceback are as without us."""
    # As `python train.py` has them.
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    sys.argv = [script, *arguments]
    try:
        with reporting():
            runpy.run_path(script, run_name="__main__")
    except Exception as error:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != script:
            frames = frames.tb_next
        traceback.print_exception(type(error), error, frames or error.__traceback__)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
