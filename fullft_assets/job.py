"""The job file that one entry point and every launcher understand.

`python -m fullft_assets.launch.workloads.<name> --job URI --sha256 DIGEST` reads it, does the work and writes
the artifact; a person can run the same line by hand. The digest pins the job: whoever may write into the
store cannot change what runs.
"""

import hashlib
import json
from pathlib import PurePosixPath

from fullft_assets.errors import StoreError
from fullft_assets.record import Record
from fullft_assets.settings import UseCaseSettings
from fullft_assets.store import Files, Manifest, Store


class Job(Record):
    """One piece of heavy work: what to read, how, and which artifact to write."""

    case: str
    stage: str
    key: str
    project_root: str
    store_url: str
    kms_key: str | None = None
    settings: UseCaseSettings
    #: `Manifest.ref` of each input, by name.
    inputs: dict[str, str]
    #: Name of the batch that the work is about, if it is about one.
    batch: str | None = None

    def open_store(self) -> Store:
        """Return the store that inputs and output live in."""
        return Store(self.store_url, self.kms_key)

    def load_inputs(self, store: Store) -> dict[str, Manifest]:
        """Return the manifest of each input."""
        return {name: store.load(ref) for name, ref in self.inputs.items()}

    def write(self, store: Store) -> str:
        """Write the job file into the store, named by its content, and return its URI."""
        name = f"{_folder(self.case, self.stage, self.key)}/{self.sha256}.json"
        store.write_bytes(name, self._content())
        return f"{store.url}/{name}"

    def arguments(self, store: Store) -> list[str]:
        """Write the job file and return the command line's arguments that name and pin it."""
        return ["--job", self.write(store), "--sha256", self.sha256]

    @property
    def sha256(self) -> str:
        """Sha256 of the job file as hex."""
        return hashlib.sha256(self._content()).hexdigest()

    def _content(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True).encode()


def read_job(uri: str, sha256: str | None = None) -> Job:
    """Read a job file.

    Args:
        sha256: the digest that the file must have; None: any.

    Raises:
        StoreError: there is no such file, it has another digest, or it is not a job.
    """
    folder, _, name = uri.rpartition("/")
    try:
        content = Files(folder).read_bytes(name)
        if content is None:
            raise StoreError(f"{uri}: not a job file (there is no such file)")
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise StoreError(
                f"{uri}: was changed after it was written (its sha256 is not {sha256}); launch the work again"
            )
        return Job.model_validate(json.loads(content))
    except ValueError as error:
        raise StoreError(f"{uri}: not a job file ({str(error).splitlines()[0]})") from error


def read_jobs(store: Store, case: str, stage: str, key: str) -> list[Job]:
    """Return every job that was written for an artifact.

    Raises:
        StoreError: one of them cannot be read, or was changed.
    """
    folder = _folder(case, stage, key)
    return [
        read_job(f"{store.url}/{folder}/{name}", PurePosixPath(name).stem)
        for name in sorted(store.names(folder))
    ]


def launch_record(case: str, stage: str, key: str) -> str:
    """Return the name of the pointer with the newest launch for a key, see `launch.records`."""
    return f"launches/{case}/{stage}/{key}"


def is_running(store: Store, case: str, stage: str, key: str) -> bool:
    """Return whether the newest launch for a key has not ended on record."""
    record = store.read_pointer(launch_record(case, stage, key))
    return record is not None and record["ended_at"] is None


def _folder(case: str, stage: str, key: str) -> str:
    return f"jobs/{case}/{stage}/{key}"
