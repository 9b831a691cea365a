"""MIDI ports: of the system, over TCP, over RTP-MIDI, and in memory."""

from .base import Port, PortState
from .loopback import LoopbackPort
from .rtp import RtpPort
from .system import SystemPort
from .tcp import TcpPort

__all__ = ["LoopbackPort", "Port", "PortState", "RtpPort", "SystemPort", "TcpPort"]
