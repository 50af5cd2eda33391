"""The section `examples`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fullft_assets.settings.base import Float, OneOf, Settings, YamlOff
from fullft_assets.task import TASKS

TaskName = Annotated[str, OneOf("task", lambda: TASKS.names)]
#: Kinds of personal data, as `examples.pii_kinds` names them.
PII_KINDS = (
    "email",
    "phone",
    "iban",
    "payment_card",
    "ip_address",
    "secret",
    "birth_date",
    "medical_record",
    "passport",
    "us_ssn",
    "uk_nhs",
    "uk_nino",
    "es_dni",
    "fr_nir",
    "it_fiscal_code",
    "de_tax_id",
    "ch_ahv",
    "nl_bsn",
    "pl_pesel",
    "br_cpf",
    "vin",
)
#: Kinds that only a model of named entities finds.
PII_MODEL_KINDS = ("person", "location", "date")
PiiKind = Annotated[str, OneOf("kind of personal data", lambda: [*PII_KINDS, *PII_MODEL_KINDS])]
Severity = Annotated[Literal["error", "warn", "off"], YamlOff()]
#: Rules that `examples.severities` may tune; `error` = the batch goes no further while the rule is red.
RULES = (
    "rows_are_well_formed",
    "texts_are_present",
    "text_lengths_are_in_bounds",
    "languages_are_expected",
    "encodings_are_intact",
    "personal_data_is_absent",
    "labels_are_present",
    "labels_are_known",
    "spans_are_in_range",
    "assistant_turns_are_present",
    "ids_are_unique",
    "texts_are_unique",
    "equal_texts_have_equal_labels",
    "labels_have_one_spelling",
    "annotators_agree",
)


class Expectation(Settings):
    """One expectation of Great Expectations on the profile of a batch, by the name that it has there."""

    name: str = Field(description="The expectation, such as `expect_column_values_to_be_between`.")
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "Its arguments. Columns of the profile: well_formed, num_characters, num_words, label,"
            " confidence, human_annotated, domain, group, language, damage_share, num_personal_data,"
            " num_labels, num_turns."
        ),
    )
    severity: Literal["error", "warn", "quarantine"] = Field(
        default="warn",
        description=(
            "`quarantine`: the failing rows are quarantined; `error`: the batch goes no further; `warn`: the"
            " check only warns."
        ),
    )


class ExamplesSettings(Settings):
    """What makes a document a valid labelled example."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "max_characters": (
            "add to `expectations`: {name: expect_column_values_to_be_between, arguments: {column:"
            " num_characters, max_value: 10000}, severity: quarantine}"
        ),
        "min_characters": (
            "add to `expectations`: {name: expect_column_values_to_be_between, arguments: {column:"
            " num_characters, min_value: 3}, severity: quarantine}"
        ),
        "max_ungrouped_share": (
            "a batch is held back if more than 5% of its rows have no group; deliver them with a group"
        ),
        "max_damage_share": (
            "texts with more than 1% damaged characters are quarantined; for another bound turn"
            " `encodings_are_intact` off in `severities`, and add to `expectations`: {name:"
            " expect_column_values_to_be_between, arguments: {column: damage_share, max_value: 0.05},"
            " severity: quarantine}"
        ),
        "min_confidence": (
            "add to `expectations`: {name: expect_column_values_to_be_between, arguments: {column:"
            " confidence, min_value: 0.5}, severity: quarantine}"
        ),
        "human_annotated_only": (
            "add to `expectations`: {name: expect_column_values_to_not_be_in_set, arguments: {column:"
            " human_annotated, value_set: [false]}, severity: quarantine}"
        ),
        "min_batch_rows": (
            "add to `expectations`: {name: expect_table_row_count_to_be_between, arguments: {min_value: 100}}"
        ),
        "min_label_share": "the snapshot's check `labels_are_common` names rare labels",
        "min_agreement": "the check `annotators_agree` is red below a kappa of 0.6",
    }

    task: TaskName = Field(
        default="classification",
        description=(
            "What the model learns to do: `classification` (one label a row), `multi_label` (a list of labels"
            " in the field `label`), `token_classification` (spans), `sft` (conversations) or"
            " `language_modeling` (plain text)."
        ),
    )
    label: str | None = Field(
        default=None,
        description=(
            "Field (Ground Truth: label attribute) that holds the label, the labels or the spans; `folder`"
            " where the name of a file's folder is its label."
        ),
    )
    label_separator: str | None = Field(
        default=None,
        min_length=1,
        description=(
            "For `multi_label`: what separates the labels of a row where they are one text, such as `;` in a"
            " CSV file. Default: a text is one label, if it is no list as JSON or Python writes it."
        ),
    )
    group: str | None = Field(
        default=None,
        description=(
            "Field that ties related rows (patient, contract family, author). Rows of one group are never in"
            " two splits."
        ),
    )
    #: Share of a batch's valid rows that may have no `group`; with more it is held back.
    max_ungrouped_share: ClassVar[float] = 0.05
    slice_by: str | None = Field(
        default=None,
        description=(
            "A further field of the rows (device, branch, form) by which the evaluation cuts the test rows"
            " into slices, beside `domain`."
        ),
    )
    domain: str | None = Field(
        default=None,
        description=(
            "Field with a row's domain (department, kind of document), by which the evaluation cuts the test"
            " rows into slices."
        ),
    )
    labels: list[str] | None = Field(
        default=None,
        min_length=2,
        description=(
            "The known labels, in whatever case rows have them; a row with any other label is quarantined."
            " Default: every label that occurs."
        ),
    )
    #: A longer text is quarantined.
    max_characters: ClassVar[int] = 1_000_000
    languages: list[str] | None = Field(
        default=None,
        min_length=1,
        description=(
            "Languages (ISO 639-1, such as `en`) that texts may be in. Default: languages are not identified."
        ),
    )
    pii: Annotated[Literal["off", "flag", "mask", "quarantine"], YamlOff()] = Field(
        default="off",
        description=(
            "Personal data in texts: `flag` counts it, `mask` replaces it, `quarantine` quarantines the row."
            " Names and places are found with `pii_model` alone, postal addresses never."
        ),
    )
    pii_kinds: list[PiiKind] = Field(
        default_factory=lambda: list(PII_KINDS),
        min_length=1,
        description=(
            f"Kinds of personal data that are looked for. Kinds: {', '.join(PII_KINDS)}; with `pii_model`,"
            f" and then by default, {', '.join(PII_MODEL_KINDS)} as well."
        ),
    )
    pii_model: str | None = Field(
        default=None,
        description=(
            "spaCy pipeline that finds names of persons, places and dates: the name of an installed one, such"
            " as `en_core_web_md`, or a folder. Needs the extra `pii`; it takes far longer than all other"
            " kinds. Default: they are not looked for."
        ),
    )
    max_quarantined_share: Float = Field(
        default=0.5,
        ge=0,
        le=1,
        description=(
            "A batch with a larger share of quarantined rows, or of conversations without a trained token, is"
            " held back (blocking check)."
        ),
    )
    severities: dict[str, Severity] = Field(
        default_factory=dict,
        description=f"Severity of a rule by its name, instead of its default. Rules: {', '.join(RULES)}.",
    )
    expectations: list[Expectation] = Field(
        default_factory=list, description="Your own rules, by their Great Expectations names."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_of_the_kinds(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("pii_model") is None or "pii_kinds" in data:
            return data
        return {**data, "pii_kinds": [*PII_KINDS, *PII_MODEL_KINDS]}

    @model_validator(mode="after")
    def _kinds_fit_the_model(self) -> Self:
        of_model = [kind for kind in self.pii_kinds if kind in PII_MODEL_KINDS]
        if of_model and self.pii_model is None:
            raise ValueError(
                f"pii_kinds: {', '.join(of_model)} needs pii_model, the spaCy pipeline that finds it"
            )
        if self.pii_model is not None and not of_model:
            raise ValueError(
                f"pii_model finds {', '.join(PII_MODEL_KINDS)}, and pii_kinds names none of them; add one, or"
                " remove pii_model"
            )
        return self
