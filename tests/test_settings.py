"""settings: bounds, defaults and cross-checks of a use case, each refused with its fix."""

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fullft_assets.settings import Settings, TrainingSettings, UseCaseSettings

pytestmark = pytest.mark.quick

LEAST: dict[str, Any] = {
    "base_model": "models/a",
    "documents": {"path": "data"},
    "examples": {"label": "kind"},
}


def sections() -> list[tuple[str, type[Settings]]]:
    found = [("", UseCaseSettings)]
    found += [
        (name, field.annotation)
        for name, field in UseCaseSettings.model_fields.items()
        if _is_section(field.annotation)
    ]
    return found


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def problem(**changes: Any) -> tuple[str, str]:
    with pytest.raises(ValidationError) as raised:
        UseCaseSettings.model_validate({**LEAST, **changes})
    [error] = raised.value.errors()
    return ".".join(map(str, error["loc"])), error["msg"]


@pytest.mark.parametrize(
    ("task", "asked", "decides"),
    [
        ("classification", None, "macro_f1"),
        ("token_classification", None, "micro_f1"),
        ("sft", None, "token_probability"),
        ("language_modeling", None, "token_probability"),
        ("language_modeling", "token_accuracy", "token_accuracy"),
    ],
)
def test_metric_that_decides_is_the_tasks_own_and_is_part_of_the_keys(
    task: str, asked: str | None, decides: str
) -> None:
    changes = {"examples": {"label": "kind", "task": task}, "evaluation": {"primary_metric": asked}}
    settings = UseCaseSettings.model_validate({**LEAST, **changes})
    assert settings.primary_metric == decides
    assert settings.model_dump(include={"evaluation"})["evaluation"]["primary_metric"] == decides
    assert settings.model_dump(include={"training"}).keys() == {"training"}


@pytest.mark.parametrize(
    ("name", "section"), sections(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_field_is_described_and_every_number_is_bounded(name: str, section: type[Settings]) -> None:
    for key, field in section.model_fields.items():
        if _is_section(field.annotation):
            continue
        assert field.description and field.description.endswith("."), f"{name}.{key}"
        if any(number in str(field.annotation) for number in ("int", "float")):
            of_items = any(bound in str(field.annotation) for bound in ("Ge(", "Gt("))
            assert of_items or any(type(bound).__name__ in ("Ge", "Gt") for bound in field.metadata), (
                f"{name}.{key} has no lower bound"
            )


def test_a_number_that_yaml_reads_as_text_is_a_number() -> None:
    settings = UseCaseSettings.model_validate({**LEAST, "training": {"learning_rate": "1e-4"}})
    assert settings.training.learning_rate == 1e-4
    branches = UseCaseSettings.model_json_schema()["$defs"]["TrainingSettings"]["properties"][
        "learning_rate"
    ]["anyOf"]
    assert {branch["type"] for branch in branches} == {"number", "string", "null"}


def test_language_modeling_reads_each_token_once_by_default() -> None:
    least = {**LEAST, "examples": {"task": "language_modeling"}}
    for data, stride, batch_size in ((LEAST, 32, 16), (least, 0, 32)):
        settings = UseCaseSettings.model_validate(data)
        assert (settings.chunks.stride, settings.training.batch_size) == (stride, batch_size)
    chosen = UseCaseSettings.model_validate({**least, "chunks": {"stride": 8}})
    assert chosen.chunks.stride == 8
    assert UseCaseSettings.model_validate(chosen.model_dump()).model_dump() == chosen.model_dump()


def with_off(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """Every setting below a section that may be `off`."""
    found = []
    for name, field in model.model_fields.items():
        if _is_section(field.annotation):
            found += [(f"{name}.{inner}", info) for inner, info in with_off(field.annotation)]
        elif "'off'" in str(field.annotation):
            found.append((name, field))
    return found


def test_a_bare_off_is_off_wherever_a_setting_may_be() -> None:
    """YAML 1.1 makes false of it."""
    known = with_off(UseCaseSettings)
    assert len(known) >= 3
    for name, field in known:
        adapter = TypeAdapter(
            Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        )
        given, meant = (
            ({"texts_are_unique": False}, {"texts_are_unique": "off"})
            if name.endswith("severities")
            else (False, "off")
        )
        assert adapter.validate_python(given) == meant, name
        assert "false" in json.dumps(adapter.json_schema()), (
            f"{name}: Dagster's check of the YAML goes by the schema"
        )
    settings = UseCaseSettings.model_validate(
        {**LEAST, "examples": {"label": "kind", "pii": False, "severities": {"texts_are_unique": False}}}
    )
    assert (settings.examples.pii, settings.examples.severities) == ("off", {"texts_are_unique": "off"})
    assert problem(examples={"label": "kind", "pii": True})[0] == "examples.pii"
    assert TrainingSettings(guards={"overfitting": False}).guards == {"overfitting": "off"}


@pytest.mark.parametrize(
    ("task", "num_rows", "epochs"),
    [
        ("classification", 40, 20),  # never more
        ("classification", 400, 20),
        ("classification", 2_000, 8),  # 16,000 rows are read
        ("multi_label", 20_000, 3),
        ("language_modeling", 40, 3),
    ],
)
def test_few_rows_with_labels_are_read_more_often_by_default(task: str, num_rows: int, epochs: float) -> None:
    examples = {"task": task} | ({} if task == "language_modeling" else {"label": "kind"})
    settings = UseCaseSettings.model_validate({**LEAST, "examples": examples})
    assert settings.with_epochs(num_rows).training.epochs == epochs
    given = UseCaseSettings.model_validate({**LEAST, "examples": examples, "training": {"epochs": 2}})
    assert given.with_epochs(num_rows) is given


class _Inner(Settings):
    size: int = 1


class _Outer(Settings):
    REMOVED = {"width": "set inner.size", "kinds: square": "draw one", "name: a list": "give one name"}

    inner: _Inner = _Inner()
    kinds: list[Literal["round"]] = []
    name: str = ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 3}, "`width` was removed; set inner.size"),
        ({"kinds": ["round", "square"]}, "`square` was removed; draw one"),
        ({"name": ["a", "b"]}, "`a list` was removed; give one name"),
    ],
)
def test_what_was_removed_is_refused_with_what_replaces_it(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _Outer.model_validate(values)


def test_a_manifest_with_a_removed_key_is_read() -> None:
    assert _Outer.from_manifest({"width": 3, "inner": {"size": 4, "height": 5}}) == _Outer(
        inner=_Inner(size=4)
    )
