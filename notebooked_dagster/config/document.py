"""YAML files as plain data that still knows on which line each key stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from notebooked_dagster.errors import ConfigError

KeyPath = tuple[str | int, ...]
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document.

    Attributes:
        path: The file.
        data: Its content.
        lines: The 1-based line of each key, by its path from the top.
    """

    path: Path
    data: Any
    lines: Mapping[KeyPath, int]

    def line(self, key: KeyPath) -> int | None:
        """The line of a key, or of the nearest key above it that is in the file."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.lines:
                return self.lines[key[:end]]
        return None


def read_documents(path: Path) -> list[Document]:
    """Every document of a YAML file.

    Raises:
        ConfigError: The file is missing, empty, not UTF-8, not YAML, or repeats a key.
    """
    text = _read(path)
    try:
        nodes = [node for node in yaml.compose_all(text, _LOADER) if node is not None]
        documents = [_document(path, node) for node in nodes]
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(path, text, error) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"The file is not valid YAML: {error}.", path=path) from error
    if not documents:
        raise ConfigError("The file is empty.", path=path, hint="Write the keys, or remove the file.")
    return documents


def key_text(key: KeyPath) -> str:
    """A key as people write it: ``experiments[2].notebook``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            "There is no such file.",
            path=path,
            hint="Check the path; it is relative to the project's folder.",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The file is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}.",
            path=path,
            hint="Save it as UTF-8.",
        ) from None
    except OSError as error:
        raise ConfigError(f"It cannot be read: {error.strerror or error}.", path=path) from error


def _not_yaml(path: Path, text: str, error: yaml.MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else None
    lines = text.splitlines()
    at_fault = lines[line - 1] if line is not None and line <= len(lines) else ""
    if "\t" in at_fault[: len(at_fault) - len(at_fault.lstrip())]:
        return ConfigError(
            "The line is indented with a tab, which YAML does not allow.",
            path=path,
            line=line,
            hint="Indent with spaces.",
        )
    return ConfigError(
        f"The file is not valid YAML: {error.problem or error.context or error}.",
        path=path,
        line=line,
        hint="Look at the indentation, the colons and the quotes there.",
    )


def _document(path: Path, root: Node) -> Document:
    lines: dict[KeyPath, int] = {(): root.start_mark.line + 1}
    _walk(path, root, (), lines, set(), ())
    loader = _LOADER("")
    try:
        data = loader.construct_document(root)
    finally:
        loader.dispose()
    return Document(path, data, lines)


def _walk(
    path: Path, node: Node, key: KeyPath, lines: dict[KeyPath, int], seen: set[int], above: tuple[int, ...]
) -> None:
    if id(node) in above:
        raise ConfigError(
            "The value contains itself.",
            path=path,
            line=lines.get(key),
            key=key_text(key),
            hint="An alias (`*name`) may not stand inside what its anchor (`&name`) marks; write the value out.",
        )
    if id(node) in seen:
        return  # an alias: its lines are those of the anchor
    seen.add(id(node))
    above = (*above, id(node))
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*key, index)] = item.start_mark.line + 1
            _walk(path, item, (*key, index), lines, seen, above)
    elif isinstance(node, MappingNode):
        own: dict[str, int] = {}
        for name_node, value in node.value:
            name = name_node.value if isinstance(name_node, ScalarNode) else str(name_node.start_mark)
            line = name_node.start_mark.line + 1
            if name in own and name != "<<":
                raise ConfigError(
                    f"The key stands twice: on line {own[name]} and on line {line}.",
                    path=path,
                    line=line,
                    key=key_text((*key, name)),
                    hint="Keep one of them.",
                )
            own[name] = line
            lines[(*key, name)] = line
            _walk(path, value, (*key, name), lines, seen, above)
