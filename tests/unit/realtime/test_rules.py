from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from notebooked_dagster.config import load_file
from notebooked_dagster.config.experiment import Strict
from notebooked_dagster.errors import ConfigError, PortError, ProviderError
from notebooked_dagster.realtime import outlets as outlets_module
from notebooked_dagster.realtime.dispatcher import Dispatcher
from notebooked_dagster.realtime.gpio import Pins, SensorConfig, SensorLoop, pin_factory
from notebooked_dagster.realtime.handler import MidiHandler
from notebooked_dagster.realtime.messages import Counters, Event, Inbox
from notebooked_dagster.realtime.network import TAG, Dagster, Mqtt, Osc, WebSockets
from notebooked_dagster.realtime.outlets import Outlet, Parcel, as_data
from notebooked_dagster.realtime.player import load, play
from notebooked_dagster.realtime.ports import LoopbackPort
from notebooked_dagster.realtime.rules import (
    KINDS,
    MqttMessage,
    OscMessage,
    Rule,
    RunRequest,
    WebSocketMessage,
    When,
    matcher,
)
from tests.unit.realtime.kit import eventually

NOTE = mido.Message("note_on", channel=9, note=40, velocity=64)
MESSAGES = st.one_of(
    st.builds(
        mido.Message,
        st.sampled_from(["note_on", "note_off"]),
        channel=st.integers(0, 15),
        note=st.integers(0, 127),
        velocity=st.integers(0, 127),
    ),
    st.builds(
        lambda c, n, v: mido.Message("control_change", channel=c, control=n, value=v),
        st.integers(0, 15),
        st.integers(0, 127),
        st.integers(0, 127),
    ),
    st.builds(
        lambda c, p: mido.Message("pitchwheel", channel=c, pitch=p),
        st.integers(0, 15),
        st.integers(-8192, 8191),
    ),
    st.sampled_from([mido.Message("clock"), mido.Message("start"), mido.Message("sysex", data=(1, 2))]),
)
SPANS = st.one_of(
    st.none(),
    st.integers(0, 127),
    st.tuples(st.integers(0, 127), st.integers(0, 127)).map(lambda p: f"{min(p)}..{max(p)}"),
    st.lists(st.integers(0, 127), min_size=1, max_size=4),
)


class Rules(Strict):
    rules: tuple[Rule, ...] = ()


def rules(*entries: dict[str, Any]) -> tuple[Rule, ...]:
    return TypeAdapter(tuple[Rule, ...]).validate_python(
        [{"name": f"r{index}", **entry} for index, entry in enumerate(entries)]
    )


def numbers(value: Any) -> set[int]:
    """What a span means, written anew."""
    if isinstance(value, str):
        first, last = map(int, value.split(".."))
        return {number for number in range(20000) if first <= number <= last}
    return set(value) if isinstance(value, list) else {value}


@given(
    MESSAGES,
    st.one_of(st.none(), st.lists(st.sampled_from(KINDS[:9]), min_size=1)),
    SPANS,
    SPANS,
    SPANS,
    st.sampled_from([None, "a", ["a", "b"]]),
    st.sampled_from(["a", "b", "c"]),
)
@settings(max_examples=300)
def test_an_event_fits_where_everything_that_is_said_fits(
    message: mido.Message, kinds: Any, note: Any, control: Any, value: Any, port: Any, source: str
) -> None:
    when = When.model_validate(
        {"type": kinds, "note": note, "control": control, "value": value, "port": port}
    )
    kind = message.type
    if kind == "note_on" and message.velocity == 0:
        kind = "note_off"
    got = {"note_on": "velocity", "note_off": "velocity", "control_change": "value"}.get(message.type)
    number = message.pitch + 8192 if message.type == "pitchwheel" else getattr(message, got) if got else None
    expected = (
        (kinds is None or kind in kinds)
        and (port is None or source in port)
        and (note is None or getattr(message, "note", -1) in numbers(note))
        and (control is None or getattr(message, "control", -1) in numbers(control))
        and (value is None or number in numbers(value))
    )
    assert matcher(when)(Event(source, 0, message)) is expected
    assert matcher(when)(Event(source, 0, value=1.0)) is False


def test_a_sensor_rule_fits_its_sensor_between_its_bounds() -> None:
    fits = matcher(When.model_validate({"sensor": "door", "above": 0.5}))
    assert fits(Event("door", 0, value=1.0))
    assert not fits(Event("door", 0, value=0.5))
    assert not fits(Event("window", 0, value=1.0))
    assert not fits(Event("door", 0, NOTE))
    assert matcher(When.model_validate({"type": "sensor"}))(Event("any", 0, value=0.0))


@pytest.mark.parametrize(
    ("rule", "line", "told"),
    [
        ("when: {type: note_onn}", 3, "'note_onn' is no kind of message"),
        ("when: {chanel: 3}", 3, "Did you mean `channel`?"),
        ("when: {channel: 0}", 3, "counted from 1 to 16"),
        ("when: {note: 51..36}", 3, "write 36..51"),
        ("when: {note: 1..200}", 3, "counted from 0 to 127"),
        ("when: {value: 0..99999999999}", 3, "no value of MIDI is larger"),
        ("when: {note: many}", 3, "write a number, a range such as 36..51"),
        ("when: {above: 1}", 3, "name it with `sensor`"),
        ("when: {sensor: door, note: 3}", 3, "no event is a sensor's and has `note`"),
        ("when: {}\n    then: []", 4, "then"),
        ("when: {}\n    then:\n      - {record: start, forward: {to: a}}", 5, "`forward` and `record`"),
        ("when: {}\n    then:\n      - record: begin", 5, "'start', 'stop' or 'toggle'"),
        (
            "when: {}\n    then:\n      - forward:\n          to: a\n          channel: 17",
            7,
            "less than or equal to 16",
        ),
        ("when: {}\n    then:\n      - osc: {to: nowhere, address: /a}", 5, "write host:port"),
        ("when: {}\n    then:\n      - mqtt: {topic: a/#}", 5, "topic"),
        ("when: {}\n    then:\n      - run: {}", 5, "The key `job` is missing"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, rule: str, line: int, told: str) -> None:
    path = tmp_path / "device.yaml"
    then = "" if "then" in rule else "\n    then: [{record: start}]"
    path.write_text(f"rules:\n  - name: one\n    {rule}{then}\n")
    with pytest.raises(ConfigError) as caught:
        load_file(path, Rules)
    assert told.lower() in str(caught.value).lower()
    assert caught.value.line == line


def test_yaml_s_on_and_off_are_what_they_say() -> None:
    (rule,) = rules({"when": {}, "then": [{"pin": {"number": 4, "value": False}}]})
    assert rule.then[0].what.value == "off"
    with pytest.raises(ValidationError):
        rules({"when": {}, "then": [{"pin": {"number": 99}}]})


async def test_messages_are_forwarded_changed_and_counted() -> None:
    found = rules(
        {"when": {"port": "in"}, "then": [{"forward": {"to": ["a", "b"], "channel": 1, "transpose": 12}}]},
        {"when": {"type": "note_on"}, "then": [{"forward": {"to": "closed"}}]},
        {
            "when": {"sensor": "door"},
            "then": [{"forward": {"to": "a"}}, {"transport": "start"}, {"run": {"job": "x"}}],
        },
    )
    a, b = LoopbackPort("a"), LoopbackPort("b")
    async with MidiHandler([a, b]) as midi:
        dispatcher = Dispatcher(found, midi)
        await dispatcher.handle(Event("in", 0, NOTE))
        await dispatcher.handle(Event("in", 0, NOTE.copy(note=120)))
        await dispatcher.handle(Event("in", 0, mido.Message("clock")))
        await dispatcher.handle(Event("door", 0, value=1.0))
    assert a.heard == b.heard == [NOTE.copy(channel=0, note=52), mido.Message("clock")]
    counters = midi.counters
    assert counters.actions == {("r0", "forward"): 4}
    assert counters.refused == {
        ("r0", "forward: note out of range"): 1,
        ("r1", "forward: ConfigError"): 2,
        ("r2", "forward: PortError"): 1,
        ("r2", "transport: PortError"): 1,
        ("r2", "run: PortError"): 1,
    }
    assert counters.handled == {"in": 3, "door": 1}
    assert counters.sent == {"a": 2, "b": 2}


async def test_a_rule_that_feeds_itself_ends_in_a_count_not_in_a_standstill() -> None:
    (rule,) = rules({"when": {}, "then": [{"forward": {"to": ["loop", "loop"]}}]})
    async with MidiHandler([LoopbackPort("loop", echo=True)], limit=50) as midi:
        dispatcher = Dispatcher([rule], midi)
        await midi.send("loop", NOTE)
        for _ in range(500):
            await asyncio.wait_for(dispatcher.handle(await midi.inbox.get()), 1)
        assert midi.counters.dropped["loop", "queue full"] > 400
        assert midi.counters.waiting() == len(midi.inbox)


@given(st.lists(MESSAGES, max_size=40), st.integers(1, 10))
@settings(max_examples=30)
def test_every_event_is_handled_dropped_or_waiting(messages: list[mido.Message], limit: int) -> None:
    async def run() -> None:
        async with MidiHandler([LoopbackPort("a")], limit=limit) as midi:
            dispatcher = Dispatcher(
                rules({"when": {"type": "note_on"}, "then": [{"forward": {"to": "a"}}]}), midi
            )
            for index, message in enumerate(messages):
                midi.inbox.offer(Event("in", 0, message))
                if index % 3 == 0 and (event := midi.inbox.get_nowait()):
                    await dispatcher.handle(event)
            counters = midi.counters
            assert counters.received.total() == len(messages)
            assert counters.waiting() == len(midi.inbox)

    asyncio.run(run())


async def test_at_most_every_counts_what_came_too_soon() -> None:
    (rule,) = rules({"when": {}, "then": [{"forward": {"to": "a"}}], "at_most_every": 10})
    async with MidiHandler([LoopbackPort("a")]) as midi:
        dispatcher = Dispatcher([rule], midi)
        for second in (0, 3, 9, 10, 12, 25):
            await dispatcher.handle(Event("in", second * 10**9, NOTE))
        assert midi.counters.actions["r0", "forward"] == 3
        assert midi.counters.refused["r0", "too soon"] == 3


async def test_an_outlet_tries_again_gives_up_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlets_module, "_PAUSES", (0.0, 0.0))
    counters = Counters()
    tries: list[str] = []

    async def deliver(parcel: Parcel) -> None:
        tries.append(parcel.what)
        if parcel.what == "never" or (parcel.what == "later" and tries.count("later") < 3):
            raise OSError("unreachable")
        if parcel.what == "refused":
            raise ConfigError("No.")
        if parcel.what == "fault":
            raise ZeroDivisionError

    outlet = Outlet("mqtt", deliver, counters, limit=5)
    for what in ("later", "never", "refused", "fault", "fine", "too many"):
        outlet.offer(Parcel("rule", Event("in", 0, NOTE), what))
    assert len(outlet) == 5
    task = asyncio.create_task(outlet.run())
    await eventually(lambda: "fine" in tries)
    task.cancel()
    assert tries == ["later"] * 3 + ["never"] * 3 + ["refused", "fault", "fine"]
    assert counters.actions == {("rule", "mqtt"): 2}
    assert counters.refused == {("rule", "mqtt: queue full"): 1, ("rule", "mqtt: failed"): 3}


async def test_a_websocket_gets_json_and_is_opened_again() -> None:
    from websockets.asyncio.server import serve

    got: list[Any] = []

    async def server(connection: Any) -> None:
        got.append(json.loads(await connection.recv()))

    async with serve(server, "127.0.0.1", 0) as running:
        url = f"ws://127.0.0.1:{running.sockets[0].getsockname()[1]}"
        client = WebSockets()
        parcel = Parcel("r", Event("keys", 0, NOTE), WebSocketMessage(url=url))
        await client.deliver(parcel)
        await eventually(lambda: got)
        await asyncio.sleep(0.05)
        # The server hangs up after each: noticed as an OSError, which the outlet tries again.
        with pytest.raises(OSError, match="ws://"):
            await client.deliver(parcel)
        await client.deliver(parcel)
        await eventually(lambda: len(got) == 2)
        await client.close()
    assert got[0] == {"source": "keys", "kind": "note_on", "channel": 10, "note": 40, "velocity": 64}


async def mqtt_broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, got: list[bytes]) -> None:
    """As much of MQTT 3.1.1 as one publisher needs."""
    while head := await reader.read(1):
        size, shift = 0, 0
        while True:
            (octet,) = await reader.readexactly(1)
            size |= (octet & 0x7F) << shift
            shift += 7
            if not octet & 0x80:
                break
        body = await reader.readexactly(size)
        kind = head[0] >> 4
        if kind == 1:
            writer.write(b"\x20\x02\x00\x00")
        elif kind == 3:
            got.append(body)
            length = int.from_bytes(body[:2], "big")
            if head[0] & 0x06:
                writer.write(b"\x40\x02" + body[2 + length : 4 + length])


async def test_mqtt_publishes_and_says_when_there_is_no_broker() -> None:
    got: list[bytes] = []
    server = await asyncio.start_server(lambda r, w: mqtt_broker(r, w, got), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Mqtt("127.0.0.1", port)
    event = Event("door", 0, value=1.0)
    await client.deliver(Parcel("r", event, MqttMessage(topic="studio/door")))
    await client.deliver(Parcel("r", event, MqttMessage(topic="studio/door", qos=1)))
    await eventually(lambda: len(got) == 2)
    assert got[0] == b"\x00\x0bstudio/door" + json.dumps(as_data(event), separators=(",", ":")).encode()
    await client.close()
    server.close()
    with pytest.raises(OSError, match="MQTT"):
        await client.deliver(Parcel("r", event, MqttMessage(topic="t")))


def _sent(osc: Osc, peer: tuple[str, int]) -> bool:
    try:
        osc.send_raw(peer, "/later", [])
    except PortError:
        return False
    return True


async def test_osc_carries_the_numbers_and_waits_for_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from pythonosc.osc_message import OscMessage as Parsed

    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    class Box(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            arrived.put_nowait(data)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Box, local_addr=("127.0.0.1", 0))
    to = f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    osc = Osc()
    osc.send(Parcel("r", Event("pads", 0, NOTE), OscMessage(to=to, address="/{source}/{note}")))
    osc.send(Parcel("r", Event("door", 0, value=1.0), OscMessage(to=to, address="/door")))
    first, second = [Parsed(await asyncio.wait_for(arrived.get(), 20)) for _ in range(2)]
    assert (first.address, first.params) == ("/pads/40", [40, 64])
    assert (second.address, second.params) == ("/door", [1.0])
    # A name server that takes its time holds up nobody; what comes before its answer is refused, and counted by who asked.
    answered = asyncio.Event()
    asked: list[str] = []

    async def slow(host: str, port: Any, **_: Any) -> list[Any]:
        asked.append(host)
        await answered.wait()
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", slow)
    named = ("desk.example", transport.get_extra_info("sockname")[1])
    osc.prepare(named)
    for _ in range(2):
        with pytest.raises(PortError, match="not known yet"):
            osc.send_raw(named, "/early", [])
    answered.set()
    await eventually(lambda: _sent(osc, named))
    assert Parsed(await asyncio.wait_for(arrived.get(), 20)).address == "/later"
    assert asked == ["desk.example"]
    await osc.close()
    transport.close()


def webserver(answers: list[Any]) -> tuple[httpx.MockTransport, list[dict[str, Any]]]:
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found if isinstance(found, httpx.Response) else httpx.Response(200, json={"data": found})

    return httpx.MockTransport(answer), asked


LAUNCHED = {"launchRun": {"__typename": "LaunchRunSuccess", "run": {"runId": "abc"}}}
NOT_FOUND: dict[str, Any] = {"runsOrError": {"results": []}}
REQUEST = RunRequest(job="door_job", tags={"a": "b"})


async def test_dagster_is_asked_once_even_where_the_answer_is_lost() -> None:
    transport, asked = webserver(
        [
            NOT_FOUND,
            httpx.ReadTimeout("lost"),
            {"runsOrError": {"results": [{"runId": "abc"}]}},
            NOT_FOUND,
            httpx.Response(502),
            # Nobody knows whether there is a run; a proxy's login.
            {"runsOrError": {"__typename": "PythonError", "message": "database is locked"}},
            httpx.Response(302, text="<html>"),
            NOT_FOUND,
            LAUNCHED,
        ]
    )
    dagster = Dagster("http://dagster:3000/", "notebooked_dagster", transport=transport)
    with pytest.raises(OSError, match="ReadTimeout"):
        await dagster.launch("door", REQUEST, "mark")
    await dagster.launch("door", REQUEST, "mark")
    assert list(dagster.launched) == ["abc"]
    assert "runsOrError" in asked[2]["query"]
    tags = {tag["key"]: tag["value"] for tag in asked[1]["variables"]["params"]["executionMetadata"]["tags"]}
    assert tags == {"notebooked/edge-rule": "door", "a": "b", TAG: "mark"}
    for told in ("502", "database is locked", "302 with no JSON"):
        with pytest.raises(OSError, match=told):
            await dagster.launch("door", REQUEST, "other")
    await dagster.launch("door", REQUEST, "other")
    await dagster.close()
    assert len(dagster.launched) == 2


async def test_what_dagster_refuses_is_not_asked_again() -> None:
    transport, _ = webserver(
        [
            NOT_FOUND,
            {"launchRun": {"__typename": "PipelineNotFoundError", "message": "no such job"}},
            NOT_FOUND,
            {
                "launchRun": {
                    "__typename": "RunConfigValidationInvalid",
                    "errors": [{"message": "bad config"}],
                }
            },
            httpx.Response(401, text="who are you"),
            httpx.Response(200, json={"errors": [{"message": "syntax"}]}),
        ]
    )
    dagster = Dagster("http://dagster:3000", "here", transport=transport)
    for told in ("no such job", "bad config", "401", "syntax"):
        with pytest.raises(ProviderError, match=told):
            await dagster.launch("door", REQUEST, told)


async def test_a_sensor_is_debounced_and_counted() -> None:
    factory = pin_factory("mock")
    counters = Counters()
    inbox = Inbox(counters)
    loop = SensorLoop(
        [
            SensorConfig(name="door", pin=17, debounce=0.03),
            SensorConfig(name="pir", pin=18, pull="down", debounce=0),
        ],
        factory,
    )
    await loop.open(inbox)
    pin = factory.pin(17)
    for _ in range(3):
        pin.drive_low()
        pin.drive_high()
    pin.drive_low()
    event = await asyncio.wait_for(inbox.get(), 2)
    assert (event.source, event.value, event.kind) == ("door", 1.0, "sensor")
    assert loop.values() == {"door": 1.0, "pir": 0.0}
    assert (loop.edges["door"], loop.bounces["door"]) == (7, 6)
    # A spike that ends where it began is no event.
    pin.drive_high()
    pin.drive_low()
    factory.pin(18).drive_high()
    assert (await asyncio.wait_for(inbox.get(), 2)).source == "pir"
    await asyncio.sleep(0.06)
    assert len(inbox) == 0
    assert loop.bounces["door"] == 8
    await loop.close()
    assert counters.received == {"door": 1, "pir": 1}


async def test_pins_are_set_held_and_given_back() -> None:
    factory = pin_factory("mock")
    pins = Pins(factory)
    (rule,) = rules(
        {
            "when": {},
            "then": [{"pin": {"number": 5, "value": "event"}}, {"pin": {"number": 6, "seconds": 0.03}}],
        }
    )
    async with MidiHandler([]) as midi:
        dispatcher = Dispatcher([rule], midi, pins=pins)
        await dispatcher.handle(Event("keys", 0, NOTE))
        assert pins.values() == {5: 1, 6: 1}
        await eventually(lambda: pins.values()[6] == 0)
        await dispatcher.handle(Event("keys", 0, NOTE.copy(velocity=0)))
        assert pins.values()[5] == 0
        await dispatcher.handle(Event("keys", 0, mido.Message("control_change", value=127)))
        assert pins.values()[5] == 1
    level = factory.pin(5)
    await pins.close()
    assert level.state == 0


async def test_a_file_is_played_in_time_and_leaves_no_note_sounding(tmp_path: Path) -> None:
    midi_file = mido.MidiFile()
    track = mido.MidiTrack(
        [
            NOTE,
            mido.Message("note_off", channel=9, note=40, time=96),
            NOTE.copy(note=41, time=0),
            mido.Message("control_change", time=48000),
        ]
    )
    midi_file.tracks.append(track)
    midi_file.save(tmp_path / "fill.mid")
    assert len(load(tmp_path / "fill.mid")) == 4
    port = LoopbackPort("a")
    async with MidiHandler([port]) as midi:
        task = asyncio.create_task(play(midi, "a", tmp_path / "fill.mid"))
        await eventually(lambda: len(port.heard) == 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert port.heard[-1] == mido.Message("note_off", channel=9, note=41)
    (tmp_path / "text.mid").write_text("no midi")
    for name in ("text.mid", "missing.mid"):
        with pytest.raises(Exception, match=r"MIDI file|no such file"):
            load(tmp_path / name)
