"""Sample deliveries: real data from packages, written as a labelling job or an archive would deliver them,
and a real model.
"""

from pathlib import Path

from fullft_assets.checking.project import DEFS, find_project_root


def prepare(yaml_path: Path) -> bool:
    """Write the sample delivery of a shipped use case unless it is there; return whether it is one: others
    bring their own data.

    Raises:
        SettingsError: a package with the data or the model is not installed.
    """
    from fullft_assets.demos import licences, standard_library

    name = _name(yaml_path)
    data = _data_folder(yaml_path)
    if name == "licences":
        licences.write(data / "licences")
    elif name == "licence_texts":
        # First what may be missing.
        standard_library.write_model(data / "models" / "smollm2-135m")
        standard_library.write_licence_texts(data / "licence_texts")
    return name in ("licences", "licence_texts")


def is_dormant(yaml_path: Path) -> bool:
    """Return whether a use case is the demo that waits for `prepare` to write its model: until then it has no
    part in Dagster.
    """
    return _name(yaml_path) == "licence_texts" and not (_data_folder(yaml_path) / "licence_texts").is_dir()


def _name(yaml_path: Path) -> str | None:
    return yaml_path.parent.name if yaml_path.parent.parent.resolve() == DEFS.resolve() else None


def _data_folder(yaml_path: Path) -> Path:
    return find_project_root(yaml_path) / "data"
