"""What the settings of all stages share: sections that refuse unknown keys, and numbers, switches and names
as YAML has them.
"""

import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, LiteralString, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from fullft_assets.errors import did_you_mean


class YamlNumber:
    """YAML 1.1 reads `1e-4` (no dot) as text; pydantic takes it for the number that it is, and so must the
    JSON schema.
    """

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {
            "anyOf": [handler(core_schema), {"type": "string", "pattern": r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"}]
        }


Float = Annotated[float, YamlNumber()]


class YamlOff:
    """YAML 1.1 reads a bare `off` as false: where a setting may be `off`, false says so, in the JSON schema
    as well.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: "off" if value is False else value, handler(source)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"const": False}]}


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, and name the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    #: Keys, and values (`KEY: VALUE`), of earlier releases, with what to do instead: the end of the message
    #: that refuses them.
    REMOVED: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_manifest(cls, recorded: Mapping[str, Any]) -> Self:
        """Return a section as a manifest recorded it; keys that this release does not have are left out.

        Raises:
            ValidationError: a recorded value is not one that this release takes.
        """
        values = {name: value for name, value in recorded.items() if name in cls.model_fields}
        for name, value in values.items():
            section = _section_of(cls.model_fields[name].annotation)
            if section is not None and isinstance(value, Mapping):
                values[name] = section.from_manifest(value).model_dump()
        return cls.model_validate(values)

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_near_matches(cls, data: Any, handler: ModelWrapValidatorHandler) -> Any:
        try:
            return handler(data)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                error.title, [cls._with_suggestion(e) for e in error.errors(include_url=False)]
            ) from None

    @classmethod
    def _with_suggestion(cls, error: ErrorDetails) -> InitErrorDetails:
        message = error["msg"]
        if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
            key = str(error["loc"][0])
            message = f"unknown key `{key}`"
            if key in cls.REMOVED:
                message = f"`{key}` was removed; {cls.REMOVED[key]}"
            else:
                message += (
                    did_you_mean(key, cls.model_fields) or f"; known keys: {', '.join(cls.model_fields)}"
                )
        value = "a list" if isinstance(error["input"], list) else error["input"]
        name = f"{error['loc'][0]}: {value}" if error["loc"] else ""
        if name in cls.REMOVED:
            message = f"`{value}` was removed; {cls.REMOVED[name]}"
        # Braces in a message are template fields to pydantic: the text is passed as a value.
        custom = PydanticCustomError(cast(LiteralString, error["type"]), "{message}", {"message": message})
        return InitErrorDetails(type=custom, loc=error["loc"], input=error["input"])


def _section_of(annotation: Any) -> type[Settings] | None:
    """Return the section that a field holds, or None where it holds a plain value or several kinds."""
    parts = [part for part in (annotation, *typing.get_args(annotation)) if isinstance(part, type)]
    sections = [part for part in parts if issubclass(part, Settings)]
    return sections[0] if len(sections) == 1 else None


class OneOf:
    """A name out of a list that other packages may add to: the JSON schema has the names, and another one is
    an error with a hint.
    """

    def __init__(self, kind: str, names: Callable[[], list[str]]):
        self.kind = kind
        self.names = names

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": self.names()}

    def _check(self, name: str) -> str:
        known_names = self.names()
        if name in known_names:
            return name
        hint = did_you_mean(name, known_names) or f"; known: {', '.join(known_names)}"
        raise PydanticCustomError(
            "unknown_name", "{message}", {"message": f"unknown {self.kind} `{name}`{hint}"}
        )
