"""Stage hashes: what the code means, not how it is written.

The normal form is our own, not ``ast.dump``'s, which differs between Python versions: node class and the fields that
say something, in a fixed order, absent and empty ones left out. So comments, blank lines, quotes, parentheses, line
breaks and docstrings do not count; names, constants, operators and order do.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from hashlib import blake2b

#: Fields that say nothing about what the code does.
_SILENT = frozenset(
    {"ctx", "kind", "type_comment", "type_ignores", "lineno", "col_offset", "end_lineno", "end_col_offset"}
)
_FIELDS: dict[type[ast.AST], tuple[str, ...]] = {}
_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def digest_of(node: ast.AST) -> bytes:
    """Digest of one statement's normal form. Not recursive, so no nesting is too deep."""
    out: list[str] = []
    write = out.append
    stack: list[object] = [node]
    pop, push = stack.pop, stack.append
    while stack:
        item = pop()
        kind = item.__class__
        if kind is str:
            write(item)  # type: ignore[arg-type]
        elif isinstance(item, ast.AST):
            if kind is ast.Name:
                write("n")
                write(item.id)  # type: ignore[attr-defined]
                continue
            if kind is ast.Constant:
                write(_constant(item.value))  # type: ignore[attr-defined]
                continue
            fields = _FIELDS.get(kind)  # type: ignore[arg-type]
            if fields is None:
                fields = _fields(item)
            write(kind.__name__)
            push(")")
            for name in fields:
                value = getattr(item, name, None)
                if value is None or value == []:
                    continue
                if name == "body" and isinstance(item, _DOCUMENTED):
                    value = _without_docstring(value)
                push(value)
                push(name)
        elif kind is list:
            push("]")
            stack.extend(reversed(item))  # type: ignore[call-overload]
            push("[")
        else:
            write(_constant(item))
    return blake2b("\x1f".join(out).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def stage_hash(digests: Iterable[bytes]) -> str:
    """Hex digest of a slice from its statements' digests, in order."""
    total = blake2b(b"notebooked/1", digest_size=16)
    for digest in digests:
        total.update(digest)
    return total.hexdigest()


def _fields(node: ast.AST) -> tuple[str, ...]:
    fields = tuple(sorted((name for name in node._fields if name not in _SILENT), reverse=True))
    _FIELDS[node.__class__] = fields
    return fields


def _constant(value: object) -> str:
    if isinstance(value, frozenset):
        return f"c:frozenset:{sorted(map(repr, value))}"
    return f"c:{type(value).__name__}:{value!r}"


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    if body and isinstance(body[0], ast.Expr):
        value = body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return body[1:]
    return body
