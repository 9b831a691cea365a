"""From an analysis to the text of the scripts. Pure: reads and writes nothing but the templates of this package."""

from __future__ import annotations

import ast
import builtins
import re
import tokenize
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notebooked_dagster.errors import CellSyntaxError, CodegenError, NoTrainingCodeError, UnsupportedCellError
from notebooked_dagster.notebook.model import Analysis, Finding, Role, Severity, Stage, Statement
from notebooked_dagster.notebook.observations import is_python

from . import datafiles, hyperparameters, prediction
from .conventions import supplied_imports
from .emit import Edit, Line, emit, module_text
from .metrics import MetricNames, measured_names
from .model import SOURCE_MAP, GeneratedScripts, GenerateOptions, Hyperparameter, SourceMap
from .plan import Function, Plan, bound, is_import, make_plan, training_statements
from .requirements import requirements_for

if TYPE_CHECKING:
    import jinja2

_BUILTINS = frozenset(dir(builtins)) | {"__file__", "__name__", "__doc__", "__builtins__"}
_TEMPLATES = Path(__file__).parent / "templates"
SUPPORT = "script_support.py"
SCRIPTS = ("preprocess.py", "train.py", "inference.py", SUPPORT, SOURCE_MAP)
_FRAMEWORKS = {
    "sklearn": "sklearn",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "torch": "torch",
    "statsmodels": "statsmodels",
    "keras": "keras",
    "tensorflow": "keras",
}
_CODING = re.compile(r"\A((?:[^\n]*\n)?[ \t\f]*#[^\n]*?coding[:=][ \t]*)[-\w.]+")
_BLOCK = re.compile(r"^\s*#@ (\w+)$")
Edits = Mapping[tuple[int, int], list[Edit]]


def generate(analysis: Analysis, options: GenerateOptions | None = None) -> GeneratedScripts:
    """Generate an experiment's scripts.

    Args:
        analysis: The notebook, understood.
        options: Configuration's say.

    Raises:
        CodegenError: The notebook is not written in Python.
        NoTrainingCodeError: ``options.strict`` and the notebook trains nothing.
        UnsupportedCellError: A stage needs a cell that production cannot promise, and it was not allowed.
        ConfigError: ``options.hyperparameters`` names what the notebook does not have.
    """
    options = options or GenerateOptions()
    if not is_python(analysis.notebook.language):
        raise CodegenError(
            f"The notebook is written in {analysis.notebook.language}; scripts can be made from Python only.",
            path=analysis.notebook.path,
            hint="Where that is not so, correct `metadata.kernelspec.language` in the file, or choose a Python kernel and save.",
        )
    trains = Stage.TRAIN in analysis.slices and bool(analysis.slices[Stage.TRAIN].own)
    if options.strict and not trains:
        raise NoTrainingCodeError(
            "Nothing in this notebook trains a model.",
            path=analysis.notebook.path,
            hint="Tag the cell that trains with `train`; `notebooked inspect` shows what each cell was taken for.",
        )
    return _Generation(analysis, options, trains).run()


def _told(analysis: Analysis, statements: Sequence[Statement]) -> list[Finding]:
    """What analysis found that decides how the scripts behave: cells that do not parse, tags that decide nothing, skew,
    names defined too late.
    """
    places = {(statement.cell, statement.node.lineno) for statement in statements}
    return [
        item
        for item in analysis.findings
        if item.rule in ("NB002", "NB003", "NB301", "NB302")
        or (item.rule == "NB101" and (item.cell, item.line) in places)
    ]


class _Generation:
    """One run of the generator: the pieces that its steps hand on."""

    def __init__(self, analysis: Analysis, options: GenerateOptions, trains: bool) -> None:
        self.analysis = analysis
        self.options = options
        self.trains = trains
        self.findings: list[Finding] = []
        self.edits: dict[tuple[int, int], list[Edit]] = {}
        statements = [
            statement for statement in training_statements(analysis) if not _ends_process(statement)
        ]
        statements = [*self._supplied(statements), *statements]
        self.constants, self.hyperparameters = hyperparameters.find(statements, options.hyperparameters)
        made = {name for statement in statements for name in statement.defines}
        self.model = next(
            (
                name
                for name in (options.model_name, *analysis.model_names)
                if name is not None and name in made
            ),
            None,
        )
        self.prediction = prediction.find(analysis, statements, self.model)
        statements = self._with_extras(statements, made)
        constant_keys = {statement.key for statement in self.constants}
        self.statements = [statement for statement in statements if statement.key not in constant_keys]
        self.findings.extend(_told(analysis, statements))
        self.taken = frozenset(name for statement in analysis.statements for name in statement.defines)
        self.plan = self._plan()

    # --- what goes where -----------------------------------------------------------------------------------------

    def _supplied(self, statements: list[Statement]) -> list[Statement]:
        """Imports that the notebook takes for granted, those of its inference included."""
        part = self.analysis.slices.get(Stage.INFERENCE)
        supplied = supplied_imports(self.analysis, [*statements, *(part.statements if part else ())])
        for statement in supplied:
            self._find(
                "NB413",
                "import-supplied",
                Severity.WARNING,
                f"`{next(iter(statement.defines))}` is used and never imported; the scripts have `{statement.text}`.",
                f"Add `{statement.text}` to the notebook.",
                statement.cell,
            )
        return supplied

    def _with_extras(self, statements: list[Statement], made: set[str]) -> list[Statement]:
        """Prediction may read what training did not need: those statements are run while training and kept."""
        part = self.analysis.slices.get(Stage.INFERENCE)
        present = {statement.key for statement in statements}
        in_function = {statement.key for statement in self.prediction.definitions}
        wanted = set(self.prediction.needs | self.prediction.example_needs)
        extras: list[Statement] = []
        for statement in reversed(part.statements if part is not None else ()):
            if statement.key in present or statement.key in in_function or not statement.defines & wanted:
                continue
            if is_import(statement) or isinstance(statement.node, ast.FunctionDef | ast.ClassDef):
                extras.append(statement)
            elif statement.uses <= made | _BUILTINS:
                # Made after training in the notebook: a statement of its own place in evaluate().
                extras.append(statement)
            wanted |= statement.uses | statement.deferred
        return sorted([*statements, *extras], key=lambda statement: statement.key)

    def _plan(self) -> Plan:
        needs = self.prediction.needs | self.prediction.example_needs
        functions = {
            name: statement
            for statement in self.statements
            if isinstance(statement.node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            for name in statement.defines
        }
        wanted, waiting = set[str](), list(needs)
        while waiting:
            name = waiting.pop()
            if name in wanted:
                continue
            wanted.add(name)
            if name in functions:
                waiting.extend(functions[name].deferred | functions[name].uses)
        if self.model:
            wanted.add(self.model)
        plan = make_plan(self.analysis, self.statements, self.constants, wanted, self.taken)
        module_level = set(plan.shared_names()) | set(bound(plan.training))
        self.state = sorted(
            name
            for name in wanted & plan.made - {self.model or ""}
            if name not in module_level or name in plan.made
        )
        self.state = [
            name
            for name in self.state
            if name not in self.prediction.example_needs or name in self._read_by_prediction(functions)
        ]
        return plan

    def _read_by_prediction(self, functions: Mapping[str, Statement]) -> set[str]:
        read, waiting = set[str](), list(self.prediction.needs)
        while waiting:
            name = waiting.pop()
            if name not in read:
                read.add(name)
                if name in functions:
                    waiting.extend(functions[name].deferred | functions[name].uses)
        return read

    # --- text ----------------------------------------------------------------------------------------------------

    def run(self) -> GeneratedScripts:
        """Generate everything."""
        self._refuse_unsupported()
        self._collect_edits()
        files: dict[str, str] = {}
        maps: dict[str, Any] = {}
        parts = {"preprocess.py": self._preprocess()}
        if self.trains:
            parts["train.py"] = self._train()
            parts["inference.py"] = self._inference()
        for name, lines in parts.items():
            files[name], maps[name] = module_text(lines)
        files[SUPPORT] = _support_text()
        cells = {origin.cell for lines in maps.values() for origin in lines.values()}
        by_index = {code.cell.index: code for code in self.analysis.code}
        source_map = SourceMap(
            notebook=self.analysis.notebook.path.name,
            scripts=maps,
            cells={index: tuple(by_index[index].cell.source.split("\n")) for index in sorted(cells)},
            stage_hashes={stage.value: digest for stage, digest in self.analysis.hashes.items()},
        )
        files[SOURCE_MAP] = source_map.to_json()
        files.update(self._requirements())
        if not self.trains:
            self._find(
                "NB411",
                "nothing-trains",
                Severity.INFO,
                "Nothing in this notebook trains a model; only preprocess.py was generated.",
                "Tag the cell that trains with `train`, if one does.",
            )
        return GeneratedScripts(
            files=dict(sorted(files.items())),
            source_map=source_map,
            hyperparameters=tuple(self.hyperparameters),
            framework=self._framework(),
            model_name=self.model,
            findings=tuple(self.findings),
            trains=self.trains,
        )

    def _find(
        self, rule: str, name: str, severity: Severity, message: str, fix: str, cell: int | None = None
    ) -> None:
        self.findings.append(Finding(rule, name, severity, message, fix, cell))

    def _refuse_unsupported(self) -> None:
        used = {statement.cell for statement in (*self.statements, *self.prediction.definitions)}
        for code in self.analysis.code:
            for removal in code.unsupported:
                if code.cell.index not in used and removal.rule != "shell-assigned":
                    continue
                if code.cell.index not in used:
                    continue
                if not self.options.allow_unsupported and self.options.strict:
                    raise UnsupportedCellError(
                        f"`{removal.text.splitlines()[0]}` cannot be promised in production: {removal.reason}",
                        path=self.analysis.notebook.path,
                        cell=code.cell.number,
                        line=removal.line,
                        hint="Tag the cell with `skip`, write it in Python, or allow it with --allow-unsupported.",
                    )
                self._find(
                    "NB412",
                    "unsupported-left-out",
                    Severity.WARNING,
                    f"`{removal.text.splitlines()[0]}` is left out of the scripts: {removal.reason}",
                    "Write it in Python, or tag the cell with `skip`.",
                    code.cell.index,
                )

    def _collect_edits(self) -> None:
        names = MetricNames(self.statements, self.model)
        values = {item.name: item for item in self.hyperparameters}
        read = datafiles.names_read(self.statements)
        for statement in (*self.statements, *self.constants):
            found = [*names.edits(statement), *datafiles.edits(statement, read), *_main_guard(statement)]
            found += _configured(statement, values)
            if found:
                self.edits[statement.key] = found

    def _emit(self, statements: Iterable[Statement], indent: int, *, apart: bool = False) -> list[Line]:
        lines: list[Line] = []
        for statement in statements:
            if lines and apart:
                lines += [Line(""), Line("")]
            lines += emit(statement, indent, self.edits.get(statement.key, ()))
        return lines

    def _body(self, function: Function) -> list[Line]:
        return self._emit(function.statements, 4) or [Line("    pass")]

    def _future(self, statements: Iterable[Statement]) -> tuple[list[Line], list[Statement]]:
        """``from __future__`` imports stand first; the rest of the imports follow."""
        future: list[Statement] = []
        rest: list[Statement] = []
        for statement in statements:
            node = statement.node
            is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
            (future if is_future else rest).append(statement)
        return [line for line in self._emit(future, 0) if not line.text.startswith("#")], rest

    def _preprocess(self) -> list[Line]:
        plan, function = self.plan, self.plan.preprocess
        future, imports = self._future(_unrepeated(plan.imports))
        declared = sorted(
            {name for statement in plan.shared for name in statement.deferred}
            & set(function.globals) - set(plan.shared_names())
        )
        known = {*plan.shared_names(), *declared, *function.globals}
        return _render(
            "preprocess.py.j2",
            {
                "future": future,
                "imports": self._emit(imports, 0),
                "constants": self._emit(plan.constants, 0),
                "shared": self._emit(plan.shared, 0, apart=True),
                "body": self._body(function),
            },
            notebook=self.analysis.notebook.path.name,
            function=function,
            constants=plan.constants,
            shared=plan.shared,
            declared=declared,
            placeholders=self._placeholders(known, plan.shared, [function], plan.has_star),
            async_="async " if plan.uses_await else "",
        )

    def _train(self) -> list[Line]:
        plan = self.plan
        functions = (plan.train, plan.evaluate)
        star = [statement for statement in plan.imports if statement.star_imports]
        example = _example(self.prediction)
        read = _reads([*plan.training, *plan.train.statements, *plan.evaluate.statements])
        read |= self.prediction.example_needs
        read |= _named_in_formulas([*self.statements, *self.constants], plan.shared_names())
        from_preprocess = sorted(
            (set(plan.shared_names()) & read | {plan.preprocess.name}) - set(_future_names(plan.imports))
        )
        results = [name for function in (plan.preprocess, *functions) for name in function.returns]
        own_global = {name for function in functions for name in function.globals}
        deferred = {name for statement in plan.training for name in statement.deferred}
        module_read = (
            deferred
            | {
                name
                for function in functions
                for name in _reads(function.statements)
                - set(function.parameters)
                - set(bound(function.statements))
            }
            | {name for function in functions for name in function.globals}
        )
        main_globals = sorted(
            set(results) & (module_read | set(from_preprocess)) - {self.plan.preprocess.name}
        )
        known = {*from_preprocess, *bound(plan.training), *main_globals, *own_global, "sys"}
        declared = sorted(
            (deferred | set(main_globals)) & (own_global | set(main_globals)) - set(from_preprocess)
        )
        main = "main" if "main" not in self.taken else "run_main"
        measured = [measured_names(function.statements) for function in functions]
        run = f"train.{main}()"
        return _render(
            "train.py.j2",
            {
                "future": self._future(plan.imports)[0],
                "imports": self._emit(star, 0),
                "training": self._emit(plan.training, 0, apart=True),
                "train": self._body(plan.train),
                "evaluate": self._body(plan.evaluate),
            },
            notebook=self.analysis.notebook.path.name,
            title=f"Train the model of {self.analysis.notebook.path.name}.",
            from_preprocess=from_preprocess,
            hyperparameters=self.hyperparameters,
            hashes=sorted((stage.value, digest) for stage, digest in self.analysis.hashes.items()),
            scripts=SCRIPTS,
            placeholders=self._placeholders(known, plan.training, list(functions), plan.has_star),
            declared=declared,
            training=plan.training,
            preprocess=plan.preprocess,
            train=plan.train,
            evaluate=plan.evaluate,
            train_metrics=measured[0],
            evaluate_metrics=measured[1],
            main=main,
            main_globals=main_globals,
            state=self.state,
            model=self.model,
            example=example,
            framework=self._framework(),
            async_="async " if plan.uses_await else "",
            await_="await " if plan.uses_await else "",
            run_main=f"asyncio.run({run})" if plan.uses_await else run,
            assign=_assignment,
        )

    def _inference(self) -> list[Line]:
        plan, found = self.plan, self.prediction
        single = not _by_name(found)
        parameter = found.parameters[0] if single else "arguments"
        shared = set(plan.shared_names())
        in_train = set(bound(plan.training))
        own = {name for statement in found.definitions for name in statement.defines}
        imports_here = [
            statement
            for statement in (
                self.analysis.slices[Stage.INFERENCE].statements
                if Stage.INFERENCE in self.analysis.slices
                else ()
            )
            if is_import(statement) and statement.key not in {item.key for item in plan.imports}
        ]
        imported = {name for statement in imports_here for name in statement.defines}
        from_preprocess = sorted((found.needs & shared) - set(_future_names(plan.imports)) - imported - own)
        from_train = found.needs & in_train - shared - own
        declared = sorted(
            ({*self.state, *([self.model] if self.model else [])} & found.needs)
            - set(from_preprocess)
            - own
            - imported
        )
        known = {*from_preprocess, *declared, *own, *imported, *from_train}
        star = [statement for statement in plan.imports if statement.star_imports]
        future, rest = self._future([*star, *imports_here])
        placeholders = [
            (name, self._cell_of(name))
            for name in sorted(found.needs - known - _BUILTINS - {"_support"})
            if not star
        ]
        lines = self._emit(rest, 0)
        if from_train:
            lines.append(Line(f"from train import {', '.join(sorted(from_train))}"))
        return _render(
            "inference.py.j2",
            {
                "future": future,
                "imports": lines,
                "definitions": self._emit(found.definitions, 0, apart=True),
                "body": [Line(f"    {text}" if text.strip() else "") for text in _reindented(found.body)],
            },
            notebook=self.analysis.notebook.path.name,
            from_preprocess=from_preprocess,
            needs_preprocess=True,
            placeholders=placeholders,
            declared=declared,
            definitions=found.definitions,
            parameter=parameter,
            unpack=() if single else found.parameters,
            cells=", ".join(str(cell + 1) for cell in found.origin),
            model=self.model,
        )

    def _cell_of(self, name: str) -> int:
        for statement in self.analysis.statements:
            if name in statement.uses or name in statement.deferred:
                return statement.cell + 1
        return 0

    def _placeholders(
        self, known: set[str], definitions: Sequence[Statement], functions: Sequence[Function], star: bool
    ) -> list[tuple[str, int]]:
        """Names that a module reads and that nothing can bind."""
        if star:
            return []
        missing: set[str] = set()
        for function in functions:
            inside = set(function.parameters) | set(bound(function.statements)) | known
            missing |= _reads(function.statements) - inside
        for statement in definitions:
            missing |= (statement.uses | statement.deferred) - known
        names = sorted(missing - _BUILTINS - {"_support"})
        self._blame_broken_cells(names)
        return [(name, self._cell_of(name)) for name in names]

    def _blame_broken_cells(self, names: Sequence[str]) -> None:
        """A name that is missing because the cell that binds it does not parse: that cell is what is to be mended."""
        for code in self.analysis.code:
            if code.error is None:
                continue
            bound_there = [
                name
                for name in names
                if re.search(rf"(?m)^\s*(?:def\s+|class\s+)?{name}\b[^=\n]*(?:=|\(|:)", code.source)
            ]
            if not bound_there:
                continue
            message = f"It does not parse ({code.error.msg}), and `{bound_there[0]}`, which training needs, is bound in it."
            if self.options.strict:
                raise CellSyntaxError(
                    message,
                    path=self.analysis.notebook.path,
                    cell=code.cell.number,
                    line=code.error.lineno,
                    hint="Mend the cell.",
                )
            self._find(
                "NB415", "broken-cell-needed", Severity.ERROR, message, "Mend the cell.", code.cell.index
            )

    def _framework(self) -> str | None:
        """By the calls that make the model, else by what is imported."""
        for statement in self.statements:
            if self.model is not None and self.model in statement.defines:
                for call in statement.calls:
                    if call.partition(".")[0] in _FRAMEWORKS:
                        return _FRAMEWORKS[call.partition(".")[0]]
        for statement in self.plan.imports:
            for node in ast.walk(statement.node):
                modules = (
                    [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else []
                )
                for module in modules:
                    root = module.partition(".")[0]
                    if root in _FRAMEWORKS and root != "sklearn":
                        return _FRAMEWORKS[root]
        return "sklearn" if any("sklearn" in statement.text for statement in self.plan.imports) else None

    def _requirements(self) -> dict[str, str]:
        pinned = [requirement for code in self.analysis.code for requirement in code.requirements]
        folder = self.analysis.notebook.path.parent
        training = requirements_for([*self.plan.imports, *self.statements], pinned, (), folder)
        serving_statements = [*self.plan.imports, *self.prediction.definitions]
        serving = requirements_for(serving_statements, pinned, ("fastapi", "uvicorn"), folder)
        union = requirements_for(
            [*self.plan.imports, *self.statements, *self.prediction.definitions],
            pinned,
            ("fastapi", "uvicorn"),
            folder,
        )
        self.findings.extend(union.findings)
        files = {"requirements.txt": "\n".join(union.lines) + "\n"}
        if self.trains:
            files["requirements-train.txt"] = "\n".join(training.lines) + "\n"
            files["requirements-inference.txt"] = "\n".join(serving.lines) + "\n"
        for path in union.local_modules:
            if path.is_file():
                files.update(self._local_module(path))
        return files

    def _local_module(self, path: Path) -> dict[str, str]:
        """A module beside the notebook; nothing, and a finding, where it cannot be imported anyway."""
        try:
            # Python's own rule for a source file's encoding.
            with tokenize.open(path) as stream:
                text = stream.read()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(text)
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            self._find(
                "NB414",
                "broken-module",
                Severity.WARNING,
                f"{path.name}, which the notebook imports, is not valid Python and was not copied: {error}.",
                f"Correct {path.name}.",
            )
            return {}
        # It is written as UTF-8, whatever it was in.
        return {path.name: _CODING.sub(r"\1utf-8", text, count=1)}


def _reads(statements: Iterable[Statement]) -> set[str]:
    return {
        name for statement in statements for name in statement.uses | statement.deferred | statement.mutates
    }


def _named_in_formulas(statements: Iterable[Statement], names: Iterable[str]) -> set[str]:
    """Names that a formula (``"y ~ scaled(x)"``) or a query (``"a > @limit"``) looks up where it is evaluated."""
    texts = [
        node.value
        for statement in statements
        if "~" in statement.text or "@" in statement.text
        for node in ast.walk(statement.node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    words = {word for text in texts for word in re.findall(r"[A-Za-z_]\w*", text)}
    return words.intersection(names)


def _unrepeated(imports: Iterable[Statement]) -> list[Statement]:
    """Imports, each once however often the notebook repeats it."""
    found: dict[str, Statement] = {}
    for statement in imports:
        found.setdefault(ast.dump(statement.node), statement)
    return list(found.values())


def _future_names(imports: Iterable[Statement]) -> set[str]:
    return {
        name
        for statement in imports
        if isinstance(statement.node, ast.ImportFrom) and statement.node.module == "__future__"
        for name in statement.defines
    }


def _ends_process(statement: Statement) -> bool:
    """``exit()`` in a cell ends a notebook's session; in a script it would end training before it is saved."""
    node = statement.node
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    return ast.unparse(node.value.func) in ("exit", "quit", "sys.exit", "os._exit")


def _main_guard(statement: Statement) -> list[Edit]:
    """The notebook's own ``if __name__ == "__main__":`` is always true there, and so in the function it becomes."""
    node = statement.node
    if not isinstance(node, ast.If) or node.test.end_lineno != node.test.lineno:
        return []
    names = {inner.id for inner in ast.walk(node.test) if isinstance(inner, ast.Name)}
    if "__name__" not in names:
        return []
    return [
        Edit(
            (node.test.lineno, node.test.col_offset),
            (node.test.lineno, node.test.end_col_offset or 0),
            "True",
        )
    ]


def _configured(statement: Statement, values: Mapping[str, Hyperparameter]) -> list[Edit]:
    """A hyperparameter's literal replaced by configuration's value."""
    node = statement.node
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return []
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    item = values.get(target.id) if isinstance(target, ast.Name) else None
    if item is None or (item.default == item.value and type(item.default) is type(item.value)):
        return []
    value = node.value
    return [
        Edit(
            (value.lineno, value.col_offset),
            (value.end_lineno or value.lineno, value.end_col_offset or 0),
            repr(item.default),
        )
    ]


def _example(found: prediction.Prediction) -> str:
    if not found.example or set(found.example) != set(found.parameters):
        return "None"
    if not _by_name(found):
        return f"_support.example(lambda: {found.example[found.parameters[0]]})"
    pairs = ", ".join(f'"{name}": {value}' for name, value in found.example.items())
    return f"_support.example(lambda: {{{pairs}}})"


def _by_name(found: prediction.Prediction) -> bool:
    """Whether a request carries arguments by name (``steps``), rather than rows."""
    return len(found.parameters) > 1 or _is_scalar(found.example.get(found.parameters[0], "[]"))


def _is_scalar(source: str) -> bool:
    try:
        return isinstance(ast.literal_eval(source), int | float | bool | None)
    except (ValueError, SyntaxError, TypeError):
        return False


def _assignment(function: Function) -> str:
    return f"{', '.join(function.returns)} = " if function.returns else ""


def _reindented(lines: Sequence[str]) -> list[str]:
    return [text for line in lines for text in line.split("\n")]


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    environment.filters["python"] = repr
    environment.filters["tojson"] = _quoted
    return environment


def _quoted(value: str) -> str:
    """A string literal in double quotes."""
    import json

    return json.dumps(value, ensure_ascii=False)


@cache
def _support_text() -> str:
    return (_TEMPLATES / SUPPORT).read_text(encoding="utf-8")


def _render(template: str, blocks: Mapping[str, list[Line]], **values: Any) -> list[Line]:
    """A template with the notebook's lines put where it names a block (``#@ name``)."""
    lines: list[Line] = []
    for text in _environment().get_template(template).render(**values).split("\n"):
        marker = _BLOCK.match(text)
        if marker:
            lines += blocks[marker[1]]
        else:
            lines.append(Line(text))
    return lines


__all__ = ["Role", "generate"]
