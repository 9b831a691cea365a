"""What cell tags mean."""

from __future__ import annotations

from typing import get_args

import pytest

from notebooked_dagster.config.experiment import TagName
from notebooked_dagster.notebook.model import Tag
from notebooked_dagster.notebook.tags import TagVocabulary

OWN = TagVocabulary("nb:", (("feature-engineering", "preprocess"), ("fit", "train")))


@pytest.mark.parametrize(
    ("tag", "meaning"),
    [
        ("train", "train"),
        ("nb:train", "train"),
        ("fit", "train"),
        ("nb:fit", "train"),
        ("feature-engineering", "preprocess"),
        ("trian", None),
        ("hide-input", None),
    ],
)
def test_a_meaning(tag: str, meaning: str | None) -> None:
    assert OWN.meaning(tag) == meaning


@pytest.mark.parametrize(
    ("tag", "known"),
    [
        ("hide-input", True),  # Jupyter Book's
        ("nb:hide-input", False),  # with our mark it is to be ours
        ("nb-ignore-NB204", True),
        ("fit", True),
        ("fitt", False),
    ],
)
def test_whose_business_it_is(tag: str, known: bool) -> None:
    assert OWN.knows(tag) == known


@pytest.mark.parametrize(
    ("tag", "near"),
    [
        ("trian", "train"),
        ("nb:trian", "nb:train"),
        ("Fitt", "fit"),
        ("nb:feature-enginering", "nb:feature-engineering"),
        ("xyz", None),
    ],
)
def test_the_nearest_is_written_as_it_was_meant(tag: str, near: str | None) -> None:
    assert OWN.nearest(tag) == near


def test_configuration_knows_every_tag() -> None:
    assert set(get_args(TagName)) == {tag.value for tag in Tag}
