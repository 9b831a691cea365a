"""Secrets in cells and in their outputs, found by detect-secrets' plugins.

The plugins that know a shape (an AWS key, a JWT, a private key) look at everything. Guessing from a name and a value is
left to assignments in code, where the name is known: that keeps image hashes, commit ids and UUIDs out. No message holds any
part of a secret.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from notebooked_dagster.notebook.model import Analysis, CellCode, Finding

from . import catalogue
from .config import LintConfig

_PLUGINS = (
    ("aws", "AWSKeyDetector"),
    ("azure_storage_key", "AzureStorageKeyDetector"),
    ("basic_auth", "BasicAuthDetector"),
    ("cloudant", "CloudantDetector"),
    ("discord", "DiscordBotTokenDetector"),
    ("github_token", "GitHubTokenDetector"),
    ("gitlab_token", "GitLabTokenDetector"),
    ("ibm_cos_hmac", "IbmCosHmacDetector"),
    ("jwt", "JwtTokenDetector"),
    ("npm", "NpmDetector"),
    ("openai", "OpenAIDetector"),
    ("private_key", "PrivateKeyDetector"),
    ("pypi_token", "PypiTokenDetector"),
    ("sendgrid", "SendGridDetector"),
    ("slack", "SlackDetector"),
    ("softlayer", "SoftlayerDetector"),
    ("square_oauth", "SquareOAuthDetector"),
    ("stripe", "StripeDetector"),
    ("telegram_token", "TelegramBotTokenDetector"),
    ("twilio", "TwilioKeyDetector"),
)
#: Shapes that came after the detector's last release.
_NEWER = (
    ("OpenAI or Anthropic API key", re.compile(r"\bsk-(?:ant-|proj-|svcacct-)[A-Za-z0-9_-]{20,}")),
    ("Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")),
    ("Google API key", re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b")),
    ("GitHub fine-grained token", re.compile(r"\bgithub_pat_[A-Za-z0-9_]{40,}\b")),
)
_DATA_URI = re.compile(r"data:[\w/+.;=-]*base64,[A-Za-z0-9+/=\s\\]+")
_BASE64_BLOCK = re.compile(r"[A-Za-z0-9+/=]{400,}")
_PASSWORD_NAME = re.compile(r"(?i)(?:^|_)(?:password|passwd|passphrase|pwd|pass)(?:$|_)|password")
_KEY_NAME = re.compile(
    r"(?i)(?:api|access|auth|account|private|secret|service|client|encryption|signing|storage|subscription)_?key|secret"
    r"|(?:^|_)token$|(?:api|auth|access|bearer|refresh|bot|hf|github|hub)_?token|credential|connection_?string|conn_?str"
)
_NOT_A_SECRET = re.compile(
    r"(?i)your|x{3,}|\.{3}|\*{3}|change.?me|example|placeholder|dummy|insert|replace|enter|todo|redacted|removed|hidden"
    r"|fake|sample|<.*>|\{.*\}|%\(|^(?:none|null|true|false|test\w*|pass\w*|pwd|user\w*|admin|secret\w*|token|key|string|str|hunter2)$"
)
_ENVIRONMENT_NAME = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
_SHORTEST_KEY, _LEAST_ENTROPY = 12, 3.0


def check(analysis: Analysis, config: LintConfig) -> Iterator[Finding]:
    """NB201, NB202."""
    for entry in analysis.code:
        yield from _in_source(entry)
    for cell in analysis.notebook.cells:
        if cell.kind != "code" and cell.source:
            for number, line in enumerate(cell.source.split("\n"), 1):
                for kind, value in shapes(line) if len(line) >= _SHORTEST_KEY else ():
                    yield catalogue.SECRET_IN_SOURCE.at(_told(kind, value), cell.index, number)
        kinds = dict(shapes(cell.output_text)) if cell.output_text else {}
        for kind, value in kinds.items():
            yield catalogue.SECRET_IN_OUTPUT.at(_told(kind, value, "The output shows"), cell.index)


def shapes(text: str) -> Iterator[tuple[str, str]]:
    """What in ``text`` has the shape of a secret, as (kind, value)."""
    if "base64," in text:
        text = _DATA_URI.sub(" ", text)
    text = _BASE64_BLOCK.sub(" ", text)
    seen: set[str] = set()
    for kind, find in _finders():
        for value in find(text):
            if (
                value in seen
                or _NOT_A_SECRET.search(value)
                or (kind == _BASIC and _is_harmless_url(text, value))
            ):
                continue
            seen.add(value)
            yield kind, value


_BASIC = "Basic Auth Credentials"


@cache
def _finders() -> tuple[tuple[str, Callable[[str], Any]], ...]:
    # detect-secrets takes a fifth of a second to import; only the audit pays for it.
    from importlib import import_module

    plugins = [
        getattr(import_module(f"detect_secrets.plugins.{module}"), name)() for module, name in _PLUGINS
    ]
    newer = [(kind, pattern.findall) for kind, pattern in _NEWER]
    return (*((str(plugin.secret_type), plugin.analyze_string) for plugin in plugins), *newer)


def _in_source(entry: CellCode) -> Iterator[Finding]:
    source = entry.cell.source
    reported: set[tuple[int, str]] = set()
    if any(True for _ in shapes(source)):
        for number, line in enumerate(source.split("\n"), 1):
            for kind, value in shapes(line):
                reported.add((number, value))
                yield catalogue.SECRET_IN_SOURCE.at(_told(kind, value), entry.cell.index, number)
    named = _assignments(entry.tree) if entry.tree is not None else _assigned_in_text(source)
    for name, literal, place in named:
        known = any(number == place and found in literal for number, found in reported)
        if not known and looks_secret(name, literal):
            reported.add((place, literal))
            yield catalogue.SECRET_IN_SOURCE.at(
                f"{name} is given a literal of {len(literal)} characters that looks like a secret.",
                entry.cell.index,
                place,
            )


def looks_secret(name: str, value: str) -> bool:
    """Whether a literal that is given to ``name`` is probably a secret."""
    password, key = _PASSWORD_NAME.search(name), _KEY_NAME.search(name)
    if not (password or key) or len(value) < 4 or " " in value.strip() or "\n" in value:
        return False
    if _NOT_A_SECRET.search(value) or _ENVIRONMENT_NAME.fullmatch(value):
        return False
    if re.match(r"(?:https?|s3|gs|file|arn)[:/]|[./~]", value) or _repeats_name(name, value):
        return False
    if password:
        return True
    return (
        len(value) >= _SHORTEST_KEY and any(c.isdigit() for c in value) and _entropy(value) >= _LEAST_ENTROPY
    )


def _repeats_name(name: str, value: str) -> bool:
    def plain(text: str) -> str:
        return re.sub(r"\W|_", "", text).lower()

    return plain(value) in plain(name) or plain(name) in plain(value)


@cache
def _entropy_plugin() -> Any:
    from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString

    return Base64HighEntropyString(limit=_LEAST_ENTROPY)


def _entropy(value: str) -> float:
    return float(_entropy_plugin().calculate_shannon_entropy(value))


def _assignments(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """(name, literal, line) of assignments, keyword arguments, dictionary entries and defaults of ``os.getenv``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from _pair(_name_of(target), node.value)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                yield from _pair(_text(key), value)
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                yield from _pair(keyword.arg or "", keyword.value)
            function = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if function in ("getenv", "get", "setdefault", "putenv") and len(node.args) == 2:
                yield from _pair(_text(node.args[0]), node.args[1])


def _pair(name: str, value: ast.expr | None) -> Iterator[tuple[str, str, int]]:
    if name and isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield name, value.value, value.lineno


def _name_of(target: ast.expr) -> str:
    if isinstance(target, ast.Name):
        return target.id
    if isinstance(target, ast.Attribute):
        return target.attr
    return _text(target.slice) if isinstance(target, ast.Subscript) else ""


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _assigned_in_text(source: str) -> Iterator[tuple[str, str, int]]:
    """The same from a cell that does not parse."""
    for number, line in enumerate(source.split("\n"), 1):
        for match in re.finditer(r"(\w+)[\"']?\]?\s*[=:]\s*([\"'])([^\"']{4,200})\2", line):
            yield match[1], match[3], number


def _is_harmless_url(text: str, password: str) -> bool:
    """Not credentials but prose or a template: a password with a slash, quote or bracket in it is no URL's."""
    return bool(re.search(r"[/\"'<>(){}\[\]]", password)) or len(password) > 200


def _told(kind: str, value: str, start: str = "The cell holds") -> str:
    kind = "password in a URL" if kind == _BASIC else kind
    article = "an" if kind[0] in "AEIOU" else "a"
    return f"{start} what looks like {article} {kind} ({len(value)} characters, not shown)."
