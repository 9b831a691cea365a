"""Write files so that a reader sees the old content or the new, never half of one."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def write_atomic(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Replace ``path`` with ``content``: written beside it, flushed to disk, then renamed over it.

    Args:
        path: The file; its folder is made where it is missing.
        content: Text is written as UTF-8 with its newlines as they are.
        mode: Permission bits of the new file; those of the old file, or the process's default, where None.

    Raises:
        OSError: The disk is full, or the folder is not writable; ``filename`` is ``path``, which is as it was before.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.resolve() if path.is_symlink() else path
    if mode is None and target.exists():
        mode = target.stat().st_mode & 0o7777
    # The default is left to the system: who asks for the umask has to change it, for all threads.
    made_with = 0o666 if mode is None else 0o600
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, made_with)) as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            # A full disk names no file, and a refused one that beside it, which nobody knows.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
