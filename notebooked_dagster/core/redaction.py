"""Keep secrets out of everything that is shown or kept: every value that was loaded as a secret is masked in every sink.

A value is known as a secret by where it came from (a secret manager, a key or an environment variable whose name says so).
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, unquote

MASK = "***"
# Anything shorter would be found in text that has nothing to do with it.
_SHORTEST = 6
# Of a secret of several lines: nor has any other text such a line.
_SHORTEST_LINE = 16
SECRET_NAME = re.compile(
    r"(secret|password|passwd|passphrase|token(?!s|iz)|(?:api|access|private|account|storage)_?key|credential"
    r"|database_url|connection_?string|webhook)",
    re.IGNORECASE,
)
# Names that speak of secrets and hold none.
_HARMLESS = re.compile(r"(_file|_path|_dir|_url_template|_id|_type|_expiry|_ttl)$", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"://[^/\s:@]*:(?P<password>[^/\s@]+)@")


class Redactor:
    """Knows values and masks them. One for a process, ``REDACTOR``; safe in several threads."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self._lock = threading.Lock()

    def add(self, value: str) -> None:
        """Learn a secret, in the forms it takes in URLs and in JSON too; of an address only its password.

        Of several lines, each is a secret: logs are masked line by line.
        """
        found = _PASSWORD_IN_URL.search(value)
        value = found["password"] if found is not None else value
        if len(value) < _SHORTEST:
            return
        lines = [line.strip() for line in value.splitlines() if not line.startswith("-----")]
        forms = [value, unquote(value), *(line for line in lines if len(line) >= _SHORTEST_LINE)]
        with self._lock:
            for form in forms:
                if len(form) >= _SHORTEST:
                    self._values |= {form, quote(form, safe="")}
                    self._values |= {json.dumps(form, ensure_ascii=plain)[1:-1] for plain in (True, False)}
            # The longest first: one secret may be the start of another.
            ordered = sorted(self._values, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, ordered)))

    def add_environment(self, environment: Mapping[str, str]) -> None:
        """Learn the variables whose names say that they hold secrets."""
        for name, value in environment.items():
            if is_secret_name(name):
                self.add(value)

    def redact(self, text: str) -> str:
        """The text with every known secret masked."""
        return self._pattern.sub(MASK, text) if self._pattern is not None else text

    def found_in(self, texts: Iterable[str]) -> set[str]:
        """The known secrets that some texts hold: another process, which is handed the texts, has to know them too."""
        pattern = self._pattern
        return {found for text in texts for found in pattern.findall(text)} if pattern is not None else set()

    def redact_file(self, path: Path) -> int:
        """Mask secrets in a file in place, each with as many asterisks as it is long: who reads it by offset goes on.

        Returns:
            How many there were.
        """
        with self._lock:
            values = [value.encode() for value in sorted(self._values, key=len, reverse=True)]
        if not values:
            return 0
        found = 0
        pattern = re.compile(b"|".join(map(re.escape, values)))
        overlap = max(map(len, values))
        with path.open("r+b") as stream:
            start = 0
            while True:
                stream.seek(start)
                block = stream.read(4 * 1024 * 1024)
                for match in pattern.finditer(block):
                    stream.seek(start + match.start())
                    stream.write(b"*" * (match.end() - match.start()))
                    found += 1
                if len(block) <= overlap:
                    return found
                start += len(block) - overlap if len(block) == 4 * 1024 * 1024 else len(block)


REDACTOR = Redactor()


def is_secret_name(name: str) -> bool:
    """Whether a key's or variable's name says that its value is a secret."""
    return SECRET_NAME.search(name) is not None and _HARMLESS.search(name) is None


class RedactingFilter(logging.Filter):
    """Masks secrets in log records, in what they were formatted with as well."""

    def __init__(self, redactor: Redactor = REDACTOR) -> None:
        super().__init__()
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask; never drops a record."""
        message = record.getMessage()
        masked = self._redactor.redact(message)
        if masked != message:
            record.msg, record.args = masked, ()
        if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
            record.exc_text = self._redactor.redact(logging.Formatter().formatException(record.exc_info))
        return True
