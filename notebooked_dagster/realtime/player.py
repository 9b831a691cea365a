"""Play standard MIDI files to a port, note by note at absolute deadlines; who is stopped leaves no note sounding."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import mido

from notebooked_dagster.errors import DataError

from .handler import MidiHandler


def load(path: Path) -> list[tuple[float, mido.Message]]:
    """The messages of a file with their times in seconds. Raises DataError where it is none."""
    try:
        midi, now, found = mido.MidiFile(path), 0.0, []
        for message in midi:
            now += message.time
            if not message.is_meta:
                found.append((now, message))
    except FileNotFoundError:
        raise DataError("There is no such file to play.", path=path) from None
    except (OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"It is no standard MIDI file: {error or 'it ends too early'}.", path=path) from None
    return found


async def play(midi: MidiHandler, port: str, path: Path) -> int:
    """Play a file to its end; returns how many messages that was.

    Raises:
        DataError: It is no MIDI file.
        PortError: Nothing is connected to the port.
    """
    messages = await asyncio.to_thread(load, path)
    begin = time.monotonic()
    sounding: set[tuple[int, int]] = set()
    try:
        for at, message in messages:
            left = begin + at - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            await midi.send(port, message)
            if message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                (sounding.add if message.type == "note_on" and message.velocity else sounding.discard)(key)
    finally:
        for channel, note in sorted(sounding):
            await midi.send(port, mido.Message("note_off", channel=channel, note=note))
    return len(messages)
