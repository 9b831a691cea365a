"""Make a code cell plain Python with the same number of lines.

A cell that parses as it stands is taken as it stands (but for calls of IPython's own functions). Only where it does not,
its lines are looked at one by one: magics, shell escapes and help are unwrapped, dropped or refused, each with a
:class:`Removal`. What then still does not parse is handed to IPython's own transformer, which knows the rest.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from .installs import installed
from .interactive import without_ipython
from .model import Cell, CellCode, Removal
from .python2 import to_python3

# Cell magics whose body is Python that runs.
_UNWRAPPED_CELLS = frozenset(
    {"time", "timeit", "capture", "prun", "memit", "mprun", "lprun", "python", "python3", "notify"}
)
# Cell magics that only show something.
_SHOWN_CELLS = frozenset({"html", "HTML", "javascript", "js", "latex", "markdown", "svg", "SVG", "mermaid"})
_UNWRAPPED_LINES = frozenset({"time", "timeit", "prun", "memit", "lprun", "mprun"})
# The options of these magics that take a value; all others stand alone.
_VALUED = {"timeit": "nrp", "prun": "DlsT", "lprun": "fmDTu", "mprun": "fT", "memit": "rti"}
_ASSIGNED_SHELL = re.compile(
    r"^(?P<indent>\s*)(?P<target>[A-Za-z_][\w., \[\]'\"]*?)\s*=\s*(?P<mark>[!%])(?!=)(?P<rest>.*)$"
)
_HELP = re.compile(r"^\s*(?:\?{1,2}\s*[\w.*%]+|%{0,2}[\w.*\[\]'\"]+(?:\(\))?\s*\?{1,2})\s*(?:#.*)?;?\s*$")
_MAGIC = re.compile(r"^(?P<indent>\s*)%(?P<name>[A-Za-z_][\w.]*)(?P<rest>.*)$")
_SHELL = re.compile(r"^(?P<indent>\s*)!{1,2}(?P<rest>.*)$")
# IPython's automagic: a line that starts with one of these commands, and is no Python, is a magic.
_AUTOMAGIC = re.compile(
    r"^\s*(?:(?:pip3?|conda|mamba)\s+install\s|(?:ls|ll|cat|head|tail|mkdir|rmdir|rm|cp|mv|less|more|man|cd|pwd)(?:\s+[-\w./*~{\"'$][^=()]*)?$)"
)
_CAPTURED = "__import__('types').SimpleNamespace(stdout='', stderr='', outputs=[], show=lambda: None)"
_PYLAB = "import numpy; import numpy as np; import matplotlib.pyplot as plt; from pylab import *"
_PROMPT = re.compile(r"^(\s*)(?:>>> ?|\.\.\. ?|In \[\d+\]: ?|\s*\.{3,}: )")


@dataclass(slots=True)
class _Work:
    """What is known of a cell while it is made into Python."""

    cell: Cell
    lines: list[str]
    removals: list[Removal] = field(default_factory=list)
    unsupported: list[Removal] = field(default_factory=list)
    requirements: list[str] = field(default_factory=list)

    def remove(self, line: int, text: str, reason: str, rule: str) -> None:
        self.removals.append(Removal(self.cell.index, line, text.strip(), reason, rule))

    def refuse(self, line: int, text: str, reason: str, rule: str) -> None:
        removal = Removal(self.cell.index, line, text.strip(), reason, rule)
        self.removals.append(removal)
        self.unsupported.append(removal)


def to_python(cell: Cell, *, path: Path | None = None) -> CellCode:
    """Make a code cell plain Python; never raises because of what the cell contains.

    Args:
        cell: A code cell.
        path: The notebook, for messages.
    """
    work = _Work(cell, cell.source.split("\n"))
    # A no-break space is what a web page or a word processor puts where a space was meant.
    source = cell.source.replace("\u00a0", " ") if "\u00a0" in cell.source else cell.source
    tree, error = _parsed(cell.source)
    if tree is not None and cell.source.lstrip().startswith("In [") and _PROMPT.match(cell.source.lstrip()):
        tree = None  # a prompt, though `In [3]: x = 1` is an annotated assignment as well
    if tree is not None:
        source = cell.source
    elif source != cell.source:
        work.lines = source.split("\n")
        tree, error = _parsed(source)
    if tree is None:
        source = _plain(work)
        tree, error = _parsed(source)
    if tree is None:
        transformed = _transformed_by_ipython(source)
        understood = _parsed(transformed)[0] if transformed is not None else None
        if transformed is not None and understood is not None:
            source, tree, error = transformed, understood, None
    if tree is None:
        source, tree, error = _from_python2(work, source, error)
    awaits = tree is not None and _awaits(tree)
    if tree is not None and ("get_ipython" in source or "display" in source):
        text = without_ipython(work, source, tree)
        left = _parsed(text)[0] if text != source else None
        source, tree = (text, left) if left is not None else (source, tree)
    return CellCode(
        cell=cell,
        source=source,
        tree=tree,
        error=error,
        removals=tuple(work.removals),
        requirements=tuple(dict.fromkeys(work.requirements)),
        unsupported=tuple(work.unsupported),
        uses_await=awaits,
    )


def _parsed(source: str) -> tuple[ast.Module | None, SyntaxError | None]:
    """Parse as IPython does: top-level await is allowed, warnings about escapes are nobody's business here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source), None
        except SyntaxError as error:
            return None, error
        except (ValueError, RecursionError, MemoryError) as error:
            return None, SyntaxError(f"cannot be parsed: {error or type(error).__name__}")


def _awaits(tree: ast.Module) -> bool:
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def _plain(work: _Work) -> str:
    """The cell's lines with what is not Python taken out, as many lines as before."""
    first = next((index for index, line in enumerate(work.lines) if line.strip()), None)
    if first is None:
        return "\n".join(work.lines)
    head = work.lines[first].strip()
    if head.startswith("%%"):
        return _cell_magic(work, first, head)
    return _lines(work, 0)


def _cell_magic(work: _Work, first: int, head: str) -> str:
    name, _, arguments = head[2:].strip().partition(" ")
    body = work.lines[first + 1 :]
    blank = [""] * (first + 1)
    if name in _UNWRAPPED_CELLS:
        work.remove(
            first + 1,
            head,
            f"`%%{name}` only measures or hides; its body runs without it.",
            "magic-unwrapped",
        )
        work.lines = [*blank, *body]
        # `%%timeit setup` runs the rest of its line first.
        if name == "timeit" and (statement := _without_options(name, arguments.strip())):
            work.lines[first] = statement
        if name == "capture" and (kept := re.search(r"(?<!\S)[A-Za-z_]\w*(?!\S)", arguments)):
            # The name of what was captured is read later on.
            work.lines[first] = f"{kept[0]} = {_CAPTURED}"
        return _plain_body(work, first + 1)
    if name in _SHOWN_CELLS:
        work.remove(first + 1, head, f"`%%{name}` only shows something.", "magic-dropped")
    elif name in ("writefile", "file"):
        work.refuse(
            first + 1,
            head,
            "`%%writefile` makes a file that the script would not have.",
            "cell-magic-unsupported",
        )
    else:
        work.refuse(
            first + 1, head, f"`%%{name}` does not run Python in this process.", "cell-magic-unsupported"
        )
    return "\n".join([""] * len(work.lines))


def _plain_body(work: _Work, start: int) -> str:
    """The body of an unwrapped cell magic: it may be Python as it stands, or hold another magic."""
    source = "\n".join(work.lines)
    if _parsed(source)[0] is not None:
        return source
    following = next((index for index in range(start, len(work.lines)) if work.lines[index].strip()), None)
    if following is not None and work.lines[following].strip().startswith("%%"):
        return _cell_magic(work, following, work.lines[following].strip())
    return _lines(work, start)


def _lines(work: _Work, start: int) -> str:
    lines = work.lines
    # As IPython does: prompts were pasted where the cell begins with one; elsewhere they stand in a docstring.
    first = next((line for line in lines[start:] if line.strip()), "")
    if _PROMPT.match(first):
        lines = work.lines = [_PROMPT.sub(r"\1", line) for line in lines]
        if _parsed("\n".join(lines))[0] is not None:
            return "\n".join(lines)
    inside = _continued_lines(lines)
    index = start
    while index < len(lines):
        line = lines[index]
        if index not in inside and _foreign(line):
            end = index
            while lines[end].rstrip().endswith("\\") and end + 1 < len(lines):
                end += 1
            whole = "\n".join(lines[index : end + 1])
            lines[index] = _replacement(work, index + 1, whole.replace("\\\n", " "))
            for extra in range(index + 1, end + 1):
                lines[extra] = ""
            index = end
        index += 1
    return "\n".join(lines)


def _foreign(line: str) -> bool:
    stripped = line.lstrip()
    return (
        stripped.startswith(("%", "!", "?"))
        or bool(_ASSIGNED_SHELL.match(line))
        or ("?" in stripped and bool(_HELP.match(line)))
        or bool(_AUTOMAGIC.match(line))
    )


def _continued_lines(lines: list[str]) -> frozenset[int]:
    """Lines that begin inside a string or a bracket: nothing in them is a magic, whatever they start with."""
    inside: set[int] = set()
    quote, depth, continued, foreign = "", 0, False, False
    for number, line in enumerate(lines):
        if quote or depth > 0 or continued:
            inside.add(number)
        elif foreign or _foreign(line):
            # A magic's line, and what a backslash joins to it, is no Python: its quotes and brackets open nothing.
            foreign = line.rstrip().endswith("\\")
            continue
        quote, depth, continued = _after(line, quote, depth)
    return frozenset(inside)


def _after(line: str, quote: str, depth: int) -> tuple[str, int, bool]:
    """The open quote and bracket depth behind a line, and whether a backslash continues it."""
    position, continued = 0, line.endswith("\\")
    while position < len(line):
        rest = line[position:]
        if quote:
            if rest.startswith("\\"):
                position += 2
            elif rest.startswith(quote):
                position += len(quote)
                quote = ""
            else:
                position += 1
            continue
        if rest.startswith("#"):
            continued = False
            break
        if rest.startswith(('"""', "'''")):
            quote = rest[:3]
            position += 3
        elif rest[0] in "\"'":
            quote = rest[0]
            position += 1
        else:
            depth += (rest[0] in "([{") - (rest[0] in ")]}")
            position += 1
    # A string in single quotes ends with its line, unless a backslash continues it.
    if len(quote) == 1 and not line.endswith("\\"):
        quote = ""
    return quote, max(depth, 0), continued


def _replacement(work: _Work, number: int, line: str) -> str:
    """What stands in a line's place; the removal is noted."""
    assigned = _ASSIGNED_SHELL.match(line)
    if assigned and not line.lstrip().startswith(("%", "!", "?")):
        return _assigned(work, number, line, assigned)
    if _HELP.match(line):
        work.remove(number, line, "Help is for reading, not for running.", "help-dropped")
        return _nothing(line)
    shell = _SHELL.match(line)
    if shell:
        return _shell(work, number, line, shell["rest"].strip())
    magic = _MAGIC.match(line)
    if magic:
        return _line_magic(work, number, line, magic)
    return _shell(work, number, line, line.strip())


def _without_options(magic: str, statement: str) -> str:
    """The statement behind the options of ``%timeit`` and its like (``-n 10 -o``)."""
    valued = _VALUED.get(magic)
    single = rf"|-[{valued}]\s*\S+|-[A-Za-z]+" if valued else ""
    return re.sub(rf"^(?:(?:--[A-Za-z][\w-]*{single})(?:\s+|$))*", "", statement)


def _assigned(work: _Work, number: int, line: str, match: re.Match[str]) -> str:
    rest = match["rest"].strip()
    if match["mark"] == "%":
        name, _, statement = rest.partition(" ")
        if name in _UNWRAPPED_LINES and statement:
            work.remove(number, line, f"`%{name}` only measures.", "magic-unwrapped")
            return f"{match['indent']}{match['target']} = {_without_options(name, statement.strip())}"
        if name == "pwd":
            work.remove(number, line, "`%pwd` is the working folder.", "magic-replaced")
            return f"{match['indent']}{match['target']} = __import__('os').getcwd()"
    work.refuse(number, line, "The output of a command or magic is kept in a variable.", "shell-assigned")
    # IPython's value is a list of lines; an empty one keeps the name defined where the user opts in.
    return f"{match['indent']}{match['target']} = []"


def _shell(work: _Work, number: int, line: str, command: str) -> str:
    if (wanted := installed(command)) is not None:
        work.requirements += wanted
        work.remove(number, line, "Packages are installed from the requirements.", "install-to-requirements")
    else:
        work.remove(number, line, "A shell command is not run in production.", "shell-dropped")
    return _nothing(line)


def _line_magic(work: _Work, number: int, line: str, match: re.Match[str]) -> str:
    name, rest = match["name"], match["rest"].strip()
    if name in _UNWRAPPED_LINES:
        statement = _without_options(name, rest)
        work.remove(number, line, f"`%{name}` only measures.", "magic-unwrapped")
        return f"{match['indent']}{statement or 'pass'}"
    if name in ("pip", "conda", "mamba", "uv"):
        return _shell(work, number, line, f"{name} {rest}")
    if name in ("env", "set_env") and "=" in rest.split("#")[0]:
        key, _, value = rest.partition("=")
        work.remove(number, line, f"`%{name}` becomes an assignment to os.environ.", "magic-replaced")
        # IPython puts a variable's value where its name stands in braces or behind a dollar.
        variable = re.fullmatch(r"\{([A-Za-z_]\w*)\}|\$([A-Za-z_]\w*)", value.strip())
        text = f"str({variable[1] or variable[2]})" if variable else repr(value.strip())
        return f"{match['indent']}__import__('os').environ[{key.strip()!r}] = {text}"
    if name == "pylab":
        work.remove(number, line, "`%pylab` becomes the imports that it makes.", "magic-replaced")
        return f"{match['indent']}{_PYLAB}"
    if name in ("cd", "run", "load", "store", "sql", "R", "bigquery", "system", "sx"):
        work.refuse(number, line, f"`%{name}` reaches outside the notebook.", "magic-unsupported")
        return _nothing(line)
    work.remove(number, line, f"`%{name}` sets up the notebook, not the program.", "magic-dropped")
    return _nothing(line)


def _nothing(line: str) -> str:
    """A statement that does nothing where a block may need one, an empty line elsewhere."""
    indent = line[: len(line) - len(line.lstrip())]
    return f"{indent}pass" if indent else ""


def _from_python2(
    work: _Work, source: str, error: SyntaxError | None
) -> tuple[str, ast.Module | None, SyntaxError | None]:
    """The source as Python 3 where only Python 2's spelling kept it from parsing; else as it was."""
    changed = to_python3(source)
    tree = _parsed(changed[0])[0] if changed is not None else None
    if changed is None or tree is None:
        return source, None, error
    before = source.split("\n")
    for line in changed[1]:
        reason = "Python 2's spelling was made Python 3's; check division and lazy map()."
        work.remove(line, before[line - 1], reason, "python2-syntax")
    return changed[0], tree, None


def _transformed_by_ipython(source: str) -> str | None:
    """IPython's own transformation, where it keeps the number of lines."""
    from IPython.core.inputtransformer2 import TransformerManager

    # IPython drops leading blank lines, and ends the cell with a newline.
    lines = source.split("\n")
    blank = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    body = "\n".join(lines[blank:])
    if not body:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transformed: str = TransformerManager().transform_cell(body)  # type: ignore[no-untyped-call]
    except Exception:  # IPython raises whatever its tokenizer does; the cell then stays as it is
        return None
    if not body.endswith("\n"):
        transformed = transformed.removesuffix("\n")
    return "\n" * blank + transformed if transformed.count("\n") == body.count("\n") else None
