"""Every rule of the audit: its id, name, severity, why it matters and what to do. The reference page is made from it.

Numbers: NB0xx the notebook and its cells, NB1xx names and order, NB2xx what should not be in a repository, NB3xx what
differs between training and inference, NB4xx what belongs elsewhere. Ids are never reused.
"""

from __future__ import annotations

from dataclasses import dataclass

from notebooked_dagster.notebook.model import Finding, Severity


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        id: ``NB101``; third-party rules take a prefix of their own.
        name: Readable, with hyphens; may stand wherever the id may.
        severity: How bad a finding is, where the configuration does not say otherwise.
        summary: What it finds, as one sentence.
        why: Why that matters.
        fix: What to do, as one imperative sentence; a finding may carry a more precise one.
    """

    id: str
    name: str
    severity: Severity
    summary: str
    why: str
    fix: str

    def at(
        self, message: str, cell: int | None = None, line: int | None = None, *, fix: str | None = None
    ) -> Finding:
        """A finding of this rule.

        Args:
            message: What was found, as one sentence.
            cell: 0-based cell index; None for the whole notebook.
            line: 1-based line in the cell; None for the whole cell.
            fix: More precise than the rule's own.
        """
        return Finding(self.id, self.name, self.severity, message, fix or self.fix, cell, line)


OTHER_LANGUAGE = Rule(
    "NB001", "other-language", Severity.ERROR,
    "The notebook is not written in Python.",
    "Scripts are made from Python only.",
    "Use a Python notebook.",
)  # fmt: skip
SYNTAX_ERROR = Rule(
    "NB002", "syntax-error", Severity.ERROR,
    "A cell does not parse as Python.",
    "Nothing can be known about such a cell, and no script can be made with it.",
    "Correct the cell, or tag it skip.",
)  # fmt: skip
UNKNOWN_TAG = Rule(
    "NB003", "unknown-tag", Severity.WARNING,
    "A cell carries a tag that has no meaning here, often a misspelt one.",
    "A misspelt tag decides nothing: the cell is classified by what it does, which may not be what you meant.",
    "Use one of imports, utils, preprocess, model, train, inference, requirements, parameters, skip.",
)  # fmt: skip
UNSUPPORTED_CELL = Rule(
    "NB004", "unsupported-cell", Severity.WARNING,
    "A cell does what production cannot promise: `%%bash`, `x = !ls`.",
    "The machine that trains may have another shell and other programs, so no script is generated from it.",
    "Write it in Python, tag the cell skip, or convert with --allow-unsupported.",
)  # fmt: skip
LEFT_OUT = Rule(
    "NB005", "left-out", Severity.INFO,
    "Something works in notebooks only and does not reach the scripts: a magic, `display`, a question mark.",
    "You should know what the script does not do.",
    "Nothing, if the script can do without it.",
)  # fmt: skip
USED_BEFORE_DEFINITION = Rule(
    "NB101", "used-before-definition", Severity.WARNING,
    "A name is used in a cell above the one that defines it.",
    "The notebook fails when it is run from top to bottom, as a script is.",
    "Move the definition above the cell that uses it.",
)  # fmt: skip
UNDEFINED_NAME = Rule(
    "NB102", "undefined-name", Severity.ERROR,
    "A name is defined nowhere in the notebook; often its cell was deleted.",
    "It only worked in the kernel that still remembered the name.",
    "Define the name, or remove its use.",
)  # fmt: skip
OUT_OF_ORDER = Rule(
    "NB103", "execution-order", Severity.WARNING,
    "Execution counts show that cells were not run from top to bottom, or not in one session.",
    "What you see in the outputs may not be what the cells produce in order.",
    "Restart the kernel, run all cells, and save.",
)  # fmt: skip
EXECUTION_GAP = Rule(
    "NB104", "execution-gap", Severity.INFO,
    "Execution counts are missing: cells were run again or deleted.",
    "What a deleted cell did may still be in the results.",
    "Restart the kernel, run all cells, and save.",
)  # fmt: skip
ORDER_DEPENDENT = Rule(
    "NB105", "order-dependent", Severity.WARNING,
    "A cell read the value that a later cell had given a name, because that one was run first.",
    "From top to bottom the cell reads an earlier value, and the result differs.",
    "Give the two values different names, or move the later definition above this cell.",
)  # fmt: skip
FAILED_CELL = Rule(
    "NB106", "failed-cell", Severity.WARNING,
    "The saved output of a cell is an error.",
    "A script stops there.",
    "Correct the cell and run it again, or tag it skip.",
)  # fmt: skip
STAR_IMPORT = Rule(
    "NB107", "star-import", Severity.WARNING,
    "A star import hides where names come from.",
    "Undefined names cannot be told, and a new release of the module may replace a name of yours.",
    "Import the names that are used.",
)  # fmt: skip
SECRET_IN_SOURCE = Rule(
    "NB201", "secret-in-source", Severity.ERROR,
    "A password, token or key stands in a cell.",
    "Whoever can read the repository can use it, also after it is deleted from the newest version.",
    "Revoke it, then read it from the environment: os.environ[\"…\"].",
)  # fmt: skip
SECRET_IN_OUTPUT = Rule(
    "NB202", "secret-in-output", Severity.ERROR,
    "A password, token or key stands in a saved output.",
    "Outputs are committed with the notebook and are rarely looked at.",
    "Revoke it, clear the cell's output, and print it no more.",
)  # fmt: skip
ABSOLUTE_PATH = Rule(
    "NB203", "absolute-path", Severity.WARNING,
    "A path that exists on one person's machine only.",
    "The notebook runs nowhere else.",
    "Use a path relative to the notebook, or take it from a parameter.",
)  # fmt: skip
UNPINNED_INSTALL = Rule(
    "NB204", "unpinned-install", Severity.WARNING,
    "A package is installed without a version.",
    "The next run may get another release.",
    "Pin it: package==version.",
)  # fmt: skip
OUTPUTS_COMMITTED = Rule(
    "NB205", "outputs-committed", Severity.INFO,
    "Outputs are saved in the notebook.",
    "They make diffs unreadable, repositories large, and may show data that should not be shown.",
    "Clear them before you commit.",
)  # fmt: skip
INTERACTIVE = Rule(
    "NB206", "interactive", Severity.WARNING,
    "A cell waits for a person or ends the process: `input()`, `getpass()`, `exit()`, `breakpoint()`.",
    "Nobody is there when a job runs.",
    "Take the value from a parameter; end early with an error that says why.",
)  # fmt: skip
TRAIN_INFERENCE_SKEW = Rule(
    "NB301", "train-inference-skew", Severity.WARNING,
    "Inference reads a name that only training makes, or prepares its input in another way than training does.",
    "The endpoint fails, or answers from differently prepared data.",
    "Make it in preprocessing, or save it with the model.",
)  # fmt: skip
CHANGED_BEFORE_THE_MODEL = Rule(
    "NB302", "changed-before-the-model", Severity.INFO,
    "Cells change the table (`df[\"age\"] = …`, `get_dummies`) before the model's input is taken from it.",
    "An endpoint takes rows as the model was fitted on: whoever asks has to make the same changes first.",
    "Put them into a function or a `Pipeline` that the model's input goes through: it is done to requests, too.",
)  # fmt: skip
LOGIC_IN_NOTEBOOK = Rule(
    "NB401", "logic-in-notebook", Severity.WARNING,
    "A cell holds more logic than a cell should (20 lines, configurable).",
    "Code in a module can be imported, tested and reviewed.",
    "Move it into a module beside the notebook and import it.",
)  # fmt: skip

RULES: dict[str, Rule] = {
    rule.id: rule
    for rule in (
        OTHER_LANGUAGE, SYNTAX_ERROR, UNKNOWN_TAG, UNSUPPORTED_CELL, LEFT_OUT,
        USED_BEFORE_DEFINITION, UNDEFINED_NAME, OUT_OF_ORDER, EXECUTION_GAP, ORDER_DEPENDENT, FAILED_CELL, STAR_IMPORT,
        SECRET_IN_SOURCE, SECRET_IN_OUTPUT, ABSOLUTE_PATH, UNPINNED_INSTALL, OUTPUTS_COMMITTED, INTERACTIVE,
        TRAIN_INFERENCE_SKEW, CHANGED_BEFORE_THE_MODEL,
        LOGIC_IN_NOTEBOOK,
    )
}  # fmt: skip


def reference_page() -> str:
    """The reference page of the rules, as Markdown."""
    lines = [
        "# Rules of `notebooked lint`\n",
        "Ignore a rule for one line with a comment behind the code, for one cell with a comment on a line of its own",
        "(`# notebooked: ignore NB101, absolute-path`; without rules it ignores all), a tag `nb-ignore-NB101`, or the cell",
        'metadata `{"notebooked": {"ignore": ["NB101"]}}`; for one notebook with the same key in its metadata; for the',
        "project in `config.yaml`. A prefix such as `NB2` stands for all rules that begin with it.\n",
        "| id | name | severity | finds |",
        "|---|---|---|---|",
        *(f"| [{r.id}](#{r.id.lower()}) | {r.name} | {r.severity} | {r.summary} |" for r in RULES.values()),
    ]
    for rule in RULES.values():
        lines += [f"\n## {rule.id}\n", f"**{rule.name}** ({rule.severity}). {rule.summary}\n"]
        lines += [f"*Why*: {rule.why}\n", f"*Fix*: {rule.fix}"]
    return "\n".join(lines)
