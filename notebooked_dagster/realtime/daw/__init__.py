"""What Logic Pro and other DAWs speak beside MIDI clock: time code, machine control, Mackie Control, OSC, MIDI files."""
