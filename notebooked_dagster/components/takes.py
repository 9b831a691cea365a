"""``Takes``: what edge devices recorded, as partitions of an asset."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` as it stands.

from pathlib import Path
from typing import Any

import dagster as dg

from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.resources import Workplace

_DEVICE_SPOOL = "/var/lib/notebooked/takes"


class Takes(dg.Component, dg.Model, dg.Resolvable):
    """The takes in a spool folder: each new one becomes a partition, once, and is materialized.

    .. code-block:: yaml

        type: notebooked_dagster.Takes
        attributes:
          spool: takes
          device: studio-1

    Attributes:
        spool: The folder that takes are fetched into, relative to the project's folder.
        device: The device of ``edge.yaml`` whose takes are fetched; where None, somebody else puts them into the folder.
        device_spool: Its spool folder there: ``record.spool`` of its ``device.yaml``.
        asset: The asset's name; the partitions are called ``notebooked_<asset>``.
        interval: Seconds between two looks.
        running: Whether the sensor is on without anybody switching it on in the UI.
    """

    spool: str = "takes"
    device: str | None = None
    device_spool: str = _DEVICE_SPOOL
    asset: str = "takes"
    interval: int = 30
    running: bool = True

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The asset and the sensor."""
        place = Workplace.here()
        return takes_definitions(
            place.root / self.spool, place.state, self.asset, self.interval, self.running,
            device=self.device, device_spool=self.device_spool, root=place.root,
        )  # fmt: skip


def takes_definitions(
    spool: Path,
    state: Path,
    name: str = "takes",
    interval: int = 30,
    running: bool = True,
    *,
    device: str | None = None,
    device_spool: str = _DEVICE_SPOOL,
    root: Path | None = None,
) -> dg.Definitions:
    """The asset ``name`` and the sensor that fills it. What reads MIDI is imported only when it is read."""
    partitions = dg.DynamicPartitionsDefinition(name=f"notebooked_{name}")
    memory = state / "takes" / f"{name}.json"

    @dg.asset(
        name=name,
        partitions_def=partitions,
        group_name=name,
        kinds={"midi"},
        description="What edge devices recorded: a standard MIDI file and what is known of it, a partition a take.",
    )
    def takes(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from notebooked_dagster.realtime.arrivals import folder_of
        from notebooked_dagster.realtime.takes import read_take

        folder = folder_of(spool, context.partition_key)
        take = read_take(folder)
        told = take.sidecar
        return dg.MaterializeResult(
            data_version=dg.DataVersion(str(told["sha256"])),
            metadata={
                "file": dg.MetadataValue.path(str(take.midi)),
                "device": str(told["device"]),
                "started": dg.MetadataValue.text(str(told["started"])) if "started" in told else "unknown",
                "seconds": float(told["seconds"]),
                "messages": int(told["messages"]),
                "ports": dg.MetadataValue.json(list(told["ports"])),
                "bpm": float(told["bpm"]),
                "gaps": dg.MetadataValue.json(list(told["gaps"])),
                "complete": bool(told["complete"]),
            },
        )

    def evaluate(context: dg.SensorEvaluationContext) -> Any:
        from notebooked_dagster.realtime.arrivals import look

        problems: tuple[str, ...] = ()
        if device is not None:
            # What came before the link went is looked at all the same.
            problems = _fetched(device, device_spool, spool, state, root or spool.parent)
            for problem in problems:
                context.log.warning("%s", problem)
        known = context.instance.get_dynamic_partitions(str(partitions.name))
        found = look(spool, memory, known)
        for folder, reason in found.broken:
            context.log.warning("%s: %s", folder, reason)
        made = context.instance.get_materialized_partitions(dg.AssetKey([name]))
        new = [take.key for take in found.takes if take.key not in set(known)]
        # Those that are known and not made as well: a daemon that died between the two would leave them for ever. The run
        # key keeps a run that was asked for from being asked for again.
        wanted = [take.key for take in found.takes if take.key not in made]
        return dg.SensorResult(
            dynamic_partitions_requests=[partitions.build_add_request(new)] if new else [],
            run_requests=[dg.RunRequest(run_key=key, partition_key=key) for key in wanted],
            asset_events=[
                dg.AssetObservation(asset_key=name, metadata={"broken take": str(folder), "reason": reason})
                for folder, reason in found.broken
            ],
            skip_reason=None
            if wanted
            else dg.SkipReason("\n".join((f"{len(found.takes)} takes, none of them new.", *problems))),
        )

    sensor = dg.SensorDefinition(
        name=f"new_{name}",
        evaluation_fn=evaluate,
        target=[takes],
        minimum_interval_seconds=interval,
        default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
        description="Looks for takes that edge devices delivered; each becomes a partition, once. A broken one is told once.",
    )
    return dg.Definitions(assets=[takes], sensors=[sensor])


def _fetched(device: str, source: str, spool: Path, state: Path, root: Path) -> tuple[str, ...]:
    """Bring what the device has finished; what was wrong, where anything was."""
    from notebooked_dagster.edge.choice import DEVICE, choose
    from notebooked_dagster.edge.devices import FILE, load_fleet
    from notebooked_dagster.edge.ssh import Link
    from notebooked_dagster.edge.takes import fetch

    try:
        declared = choose(load_fleet(root / FILE), {DEVICE: device}, {})
        assert declared is not None
        return fetch(Link(declared, state / "edge"), source, spool).problems
    except (NotebookedError, OSError) as error:
        return (str(error),)
