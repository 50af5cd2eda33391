"""trusted code: Python files that a model brings, which run only where the use case's `trust_remote_code`
allows it.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fullft_assets.base_model.model_config import read_config
from fullft_assets.errors import SettingsError

if TYPE_CHECKING:
    from fullft_assets.settings import UseCaseSettings


@dataclass(frozen=True)
class TrustedFolder:
    """A model's folder whose Python code may run; it is used wherever a model's folder is.

    The right goes with the folder: what loads a model asks the folder that it is given, and refuses any
    other's code.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name


ModelFolder = Path | TrustedFolder


def with_rights(folder: Path, settings: UseCaseSettings) -> ModelFolder:
    """Return a folder of a use case's base model, or of a model that was made of it, with the right to run
    its code where that is given.
    """
    return TrustedFolder(folder) if settings.trust_remote_code else folder


def own_code(folder: Path) -> list[Path]:
    """Return the Python files in a model's folder, sorted: what may run where its code is trusted; none if
    transformers has its architecture.

    Raises:
        SettingsError: `config.json` names classes that are not in them, as those of another repository, which
            no commit pins.
    """
    named = read_config(folder).get("auto_map") or {}
    files = sorted(folder.rglob("*.py")) if named else []
    for kind, reference in named.items():
        # Tokenizers are read from tokenizer.json, and never run.
        if kind != "AutoConfig" and not kind.startswith("AutoModel"):
            continue
        if "--" in str(reference):
            raise SettingsError(
                f"{folder}/config.json: {kind} is code of another repository ({reference}), which base_model"
                " does not pin; copy its files into the folder and name them without"
                f" `{str(reference).split('--')[0]}--`"
            )
        file = re.fullmatch(r"((?:\w+/)*\w+)\.\w+", str(reference), re.ASCII)
        if file is None or not (folder / f"{file[1]}.py").is_file():
            missing = (
                f"{reference} is no class in a Python file of the folder"
                if file is None
                else f"{file[1]}.py is not in the folder"
            )
            raise SettingsError(
                f"{folder}/config.json: {kind}: {missing}; fetch the model's Python files too (*.py)"
            )
    return files


def copy_code(model: ModelFolder, target: Path) -> None:
    """Copy the code of a model, where it may run, into the folder of a model that was made of it, which
    cannot be loaded without.
    """
    if isinstance(model, TrustedFolder):
        for file in own_code(model.path):
            place = target / file.relative_to(model.path)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
