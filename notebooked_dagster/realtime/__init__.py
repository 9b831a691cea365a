"""Real time on a Raspberry Pi: MIDI, sensors, a clock, a recorder and rules. No Dagster here; it runs where there is none.

MIDI, GPIO and MQTT come from the extra ``edge`` and are imported where they are used.
"""
