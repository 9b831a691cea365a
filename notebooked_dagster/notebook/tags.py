"""The words that cell tags may be: ours, a project's own, and those of other tools that are none of our business."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .model import Finding, Notebook, Severity, Tag

_OURS = frozenset(tag.value for tag in Tag)
#: Tags that Jupyter, Jupyter Book, papermill, nbconvert, nbgrader, nbdev and Colab give a meaning to.
_OTHER_TOOLS = frozenset(
    [
        "injected-parameters",
        "raises-exception",
        "hide-input",
        "hide-output",
        "hide-cell",
        "hide_input",
        "hide_output",
        "hide_cell",
        "remove-input",
        "remove-output",
        "remove-cell",
        "remove_input",
        "remove_output",
        "remove_cell",
        "remove-stdout",
        "remove-stderr",
        "scroll-output",
        "full-width",
        "popout",
        "margin",
        "skip-execution",
        "nbval-skip",
        "nbval-ignore-output",
        "nbval-raises-exception",
        "nbval-check-output",
        "solution",
        "exercise",
        "todo",
        "export",
        "exporti",
        "hide",
        "default",
        "active-ipynb",
        "active-py",
        "active-py-ipynb",
        "active-rmd-ipynb",
        "keep_output",
        "test",
        "slide",
        "subslide",
        "fragment",
        "notes",
        "no_execute",
        "outputprepend",
    ]
)
_IGNORE = "nb-ignore-"


@dataclass(frozen=True, slots=True)
class TagVocabulary:
    """What cell tags mean in one project.

    Attributes:
        prefix: Marks our tags (``nb:``); tags without it count too.
        extra: Further tags and the tag each stands for (``("feature-engineering", "preprocess")``).
    """

    prefix: str = ""
    extra: tuple[tuple[str, str], ...] = ()

    def meaning(self, tag: str) -> str | None:
        """Which of our tags it is; None where it is none."""
        name = self._bare(tag)
        name = dict(self.extra).get(name, name)
        return name if name in _OURS else None

    def knows(self, tag: str) -> bool:
        """Whether somebody gives it a meaning: we, the project, or another tool."""
        if self.meaning(tag) is not None:
            return True
        return self._bare(tag) == tag and (tag in _OTHER_TOOLS or tag.lower().startswith(_IGNORE))

    def nearest(self, tag: str) -> str | None:
        """The tag that was probably meant, as it is to be written."""
        name = self._bare(tag)
        mark = tag.removesuffix(name)
        near = difflib.get_close_matches(
            name.lower(), [*(tag.value for tag in Tag), *dict(self.extra)], 1, 0.6
        )
        return f"{mark}{near[0]}" if near else None

    def of_cells(self, notebook: Notebook) -> dict[int, tuple[str, ...]]:
        """Our tags of each cell that has any, by cell."""
        found = {}
        for cell in notebook.cells:
            names = tuple(dict.fromkeys(name for tag in cell.tags if (name := self.meaning(tag)) is not None))
            if names:
                found[cell.index] = names
        return found

    def findings(self, notebook: Notebook) -> Iterator[Finding]:
        """NB003 for every tag that nobody gives a meaning to."""
        for cell in notebook.cells:
            for tag in cell.tags:
                if self.knows(tag):
                    continue
                near = self.nearest(tag)
                yield Finding(
                    "NB003", "unknown-tag", Severity.WARNING, f"The tag {tag!r} has no meaning here.",
                    f"Did you mean {near}?" if near else f"Use one of {_all()}.", cell.index,
                )  # fmt: skip

    def _bare(self, tag: str) -> str:
        return tag.removeprefix(self.prefix) if self.prefix else tag


@lru_cache(maxsize=1)
def _all() -> str:
    return ", ".join(tag.value for tag in Tag)
