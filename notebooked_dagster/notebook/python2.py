"""Python 2's statements that Python 3 does not parse, written as Python 3 with the same number of lines.

Public notebooks of the years before 2018 are full of ``print x``. Only what is a matter of spelling is changed: the print
statement, ``except E, e``, ``raise E, "text"``, ``<>``, long integers and names that were renamed. What behaves differently
(division, lazy ``map``) stays as it stands.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass

_RENAMED = {
    "xrange": "range",
    "raw_input": "input",
    "unicode": "str",
    "basestring": "str",
    "unichr": "chr",
    "long": "int",
}
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_BREAKS = frozenset({tokenize.NEWLINE, tokenize.COMMENT, tokenize.ENDMARKER})


@dataclass(frozen=True, slots=True)
class _Edit:
    """Text that replaces a span of one line."""

    line: int
    start: int
    end: int
    text: str


def to_python3(source: str) -> tuple[str, tuple[int, ...]] | None:
    """The source as Python 3 and the lines that changed; None where nothing in it is Python 2's or it has no tokens.

    Args:
        source: What Python 3 does not parse.
    """
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):
        return None
    edits = [*_statements(tokens), *_words(tokens)]
    if not edits:
        return None
    lines = source.split("\n")
    for edit in sorted(edits, key=lambda one: (one.line, one.start, one.end), reverse=True):
        line = lines[edit.line - 1]
        lines[edit.line - 1] = line[: edit.start] + edit.text + line[edit.end :]
    return "\n".join(lines), tuple(sorted({edit.line for edit in edits}))


def _statements(tokens: Sequence[tokenize.TokenInfo]) -> list[_Edit]:
    edits: list[_Edit] = []
    begins, depth = True, 0
    for index, token in enumerate(tokens):
        if begins and token.type == tokenize.NAME and token.string in ("print", "except", "raise"):
            rest = _rest(tokens, index + 1)
            edits += {"print": _print, "except": _except, "raise": _raise}[token.string](token, rest)
        depth += (token.string in _OPENING) - (token.string in _CLOSING) if token.type == tokenize.OP else 0
        begins = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.NL) or (
            token.type == tokenize.OP and token.string in (";", ":") and depth == 0
        )
    return edits


def _rest(tokens: Sequence[tokenize.TokenInfo], start: int) -> list[tokenize.TokenInfo]:
    """The tokens up to the end of the simple statement."""
    depth = 0
    found: list[tokenize.TokenInfo] = []
    for token in tokens[start:]:
        if token.type in _BREAKS and depth == 0:
            break
        if token.type == tokenize.OP:
            depth += (token.string in _OPENING) - (token.string in _CLOSING)
            if token.string == ";" and depth == 0:
                break
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            found.append(token)
    return found


def _commas(rest: Sequence[tokenize.TokenInfo]) -> list[int]:
    depth = 0
    found = []
    for index, token in enumerate(rest):
        if token.type != tokenize.OP:
            continue
        depth += (token.string in _OPENING) - (token.string in _CLOSING)
        if token.string == "," and depth == 0:
            found.append(index)
    return found


def _print(word: tokenize.TokenInfo, rest: Sequence[tokenize.TokenInfo]) -> list[_Edit]:
    line, end = word.end
    if not rest:
        return [_Edit(line, end, end, "()")]
    first, last = rest[0], rest[-1]
    if (
        first.type == tokenize.OP
        and first.string in ("=", ".", ",", ":", ")", "+=", "[")
        and first.string != "["
    ):
        return []
    if _is_one_group(rest):
        return []
    # Blanks between the word and what it prints go, on the word's own line.
    gap = first.start[1] if first.start[0] == line else end
    commas = _commas(rest)
    ending = ")"
    closing = _Edit(*_behind(last), ending)
    if commas and commas[-1] == len(rest) - 1:
        closing = _Edit(last.start[0], last.start[1], last.end[1], ', end=" ")')
    if first.string == ">>" and len(rest) > 1:
        target = rest[1 : commas[0]] if commas else rest[1:]
        name = " ".join(token.string for token in target).replace(" . ", ".")
        body = rest[commas[0] + 1 :] if commas else []
        if not body or body[0].start[0] != line:
            return [_Edit(line, end, last.end[1], f"(file={name})")] if last.end[0] == line else []
        return [_Edit(line, end, body[0].start[1], "("), _Edit(*_behind(last), f", file={name})")]
    return [_Edit(line, end, gap, "("), closing]


def _is_one_group(rest: Sequence[tokenize.TokenInfo]) -> bool:
    """Whether it is one pair of brackets already: ``print (a, b)``."""
    if rest[0].string != "(" or rest[-1].string != ")":
        return False
    depth = 0
    for index, token in enumerate(rest):
        if token.type == tokenize.OP:
            depth += (token.string in _OPENING) - (token.string in _CLOSING)
            if depth == 0:
                return index == len(rest) - 1
    return False


def _behind(token: tokenize.TokenInfo) -> tuple[int, int, int]:
    return token.end[0], token.end[1], token.end[1]


def _except(_word: tokenize.TokenInfo, rest: Sequence[tokenize.TokenInfo]) -> list[_Edit]:
    commas = _commas(rest)
    if len(commas) != 1 or commas[0] + 1 >= len(rest) or rest[commas[0] + 1].type != tokenize.NAME:
        return []
    comma = rest[commas[0]]
    return [_Edit(comma.start[0], comma.start[1], comma.end[1], " as")]


def _raise(_word: tokenize.TokenInfo, rest: Sequence[tokenize.TokenInfo]) -> list[_Edit]:
    commas = _commas(rest)
    if len(commas) != 1:
        return []
    comma = rest[commas[0]]
    following = rest[min(commas[0] + 1, len(rest) - 1)]
    end = following.start[1] if following.start[0] == comma.start[0] else comma.end[1]
    return [
        _Edit(comma.start[0], comma.start[1], max(end, comma.end[1]), "("),
        _Edit(*_behind(rest[-1]), ")"),
    ]


def _words(tokens: Sequence[tokenize.TokenInfo]) -> list[_Edit]:
    """Renamed names, ``5L``, ``<>``."""
    edits: list[_Edit] = []
    for index, token in enumerate(tokens):
        line, start = token.start
        before = tokens[index - 1] if index else None
        after = tokens[index + 1].string if index + 1 < len(tokens) else ""
        if token.type == tokenize.OP and (token.string + after).startswith("<>"):
            edits.append(_Edit(line, start, start + 2, "!="))
        elif token.type != tokenize.NAME:
            continue
        elif (
            token.string in _RENAMED
            and after != "="
            and (before is None or before.string not in (".", "def", "class", "import"))
        ):
            edits.append(_Edit(line, start, token.end[1], _RENAMED[token.string]))
        elif (
            token.string in ("L", "l")
            and before is not None
            and before.type == tokenize.NUMBER
            and before.end == token.start
        ):
            edits.append(_Edit(line, start, token.end[1], ""))
    return edits
