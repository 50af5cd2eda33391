"""The job file that one entry point and every launcher understand.

`python -m fullft_assets.workloads.<name> --job URI` reads it, does the work and writes the artifact;
a person can run the same line by hand.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from fullft_assets.errors import StoreError
from fullft_assets.settings import UseCaseSettings
from fullft_assets.store import Manifest, Store


class Job(BaseModel):
    """One piece of heavy work: what to read, how, and which artifact to write."""

    model_config = ConfigDict(frozen=True)

    case: str
    stage: str
    key: str
    project_root: str
    store_url: str
    store_options: dict[str, Any] = {}
    settings: UseCaseSettings
    #: `Manifest.ref` of each input, by name.
    inputs: dict[str, str]

    def open_store(self) -> Store:
        """Return the store that inputs and output live in."""
        return Store(self.store_url, self.store_options)

    def load_inputs(self, store: Store) -> dict[str, Manifest]:
        """Return the manifest of each input."""
        return {name: store.load(ref) for name, ref in self.inputs.items()}

    def write(self, store: Store) -> str:
        """Write the job file into the store and return its URI."""
        return store.write_json(f"jobs/{self.case}/{self.stage}/{self.key}.json", self.model_dump(mode="json"))


def read_job(uri: str) -> Job:
    """Read a job file.

    Raises:
        StoreError: there is no such file, or it is not a job.
    """
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(uri)
        return Job.model_validate(json.loads(files.cat_file(path)))
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(f"{uri}: not a job file ({str(error).splitlines()[0]})") from error
