"""The store: artifacts are made in it, and every other part of it is reached through it."""

import shutil
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from fullft_assets.errors import DiskError, is_disk_full, without_message, without_secrets
from fullft_assets.store.artifacts import Artifacts, Draft
from fullft_assets.store.disk import locked
from fullft_assets.store.hashing import artifact_key
from fullft_assets.store.manifest import MANIFEST, Identity, Manifest, Outcome
from fullft_assets.store.pointers import Lease, Pointers


def checkpoints_ref(case: str, stage: str, key: str) -> str:
    """Return the folder in a remote store with the checkpoints of unfinished work, which is also the name of
    the lease on them.
    """
    return f"checkpoints/{case}/{stage}/{key}"


class Store(Artifacts, Pointers):
    """A local folder or `s3://bucket/prefix` with artifacts, pointers, folders of unfinished work and
    tracebacks.
    """

    @contextmanager
    def create(self, case: str, stage: str, key: str, *, version: str, seed: int) -> Iterator[Draft]:
        """Open a new attempt at an artifact; whatever is not committed is removed.

        Raises:
            DiskError: there was no room for its files.
            SettingsError: the bucket's server cannot compare and swap.
        """
        self.require_conditions()
        attempt = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        ref = f"{case}/{stage}/{key}/{attempt}"
        path = (
            self.make_folder(Path(self.url, ref))
            if self.is_local
            else Path(tempfile.mkdtemp(prefix="fullft-"))
        )
        draft = Draft(
            self, path, case=case, stage=stage, key=key, attempt=attempt, version=version, seed=seed
        )
        with locked(path):
            try:
                yield draft
            except Exception as error:
                if not is_disk_full(error):
                    raise
                reason = without_secrets(" ".join(str(error).split()))[:120]
                raise DiskError(
                    f"{self.url}: no room for {case}/{stage} ({reason}); free space or raise the quota, then"
                    " run the same command again: nothing half-written is left, and finished work is kept"
                ) from error
            finally:
                if draft.manifest is None or not self.is_local:
                    shutil.rmtree(path, ignore_errors=True)

    def ensure(
        self,
        case: str,
        stage: str,
        write: Callable[[Draft], Outcome],
        *,
        version: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any],
        seed: int,
    ) -> Manifest:
        """Return the artifact that these arguments determine: found if it exists, else written now.

        Args:
            write: fills a draft's folder and returns the metadata and check outcomes.
            version, settings, inputs, seed: see `artifact_key`.
        """
        key = artifact_key(stage, version, settings, inputs, seed)
        artifact = self.find(case, stage, key)
        if artifact is not None:
            return artifact
        with self.create(case, stage, key, version=version, seed=seed) as draft:
            metadata, checks = write(draft)
            manifest = draft.commit(settings=settings, inputs=inputs, metadata=metadata, checks=checks)
        # Another process may have committed meanwhile: all go on with the same attempt.
        return self.find(case, stage, key) or manifest

    def alone_with_artifacts(self, case: str) -> AbstractContextManager[Lease]:
        """Wait until no other process rewrites or removes artifacts of a use case, as an erasure and a
        clean-up do: see `alone`.
        """
        return self.alone(f"{case}/rewriting")

    @contextmanager
    def rewriting(self, case: str) -> Iterator[None]:
        """Say that artifacts of a use case are being replaced under their keys: what was derived from them
        before is made anew.

        After an error, or a death, that stays so until the next such block ends: the work is half done, and
        done again.
        """
        self.write_pointer(_rewritten(case), {"by": uuid.uuid4().hex, "is_over": False})
        yield
        self.write_pointer(_rewritten(case), {"by": uuid.uuid4().hex, "is_over": True})

    def last_rewriting(self, case: str) -> str | None:
        """Return an id of the last time that artifacts were replaced under their keys: "" if they never were,
        None while they are being replaced.
        """
        pointer = self.read_pointer(_rewritten(case))
        return "" if pointer is None else pointer["by"] if pointer["is_over"] else None

    def rewrite(
        self,
        manifest: Manifest,
        edit: Callable[[Path], Mapping[str, Any]],
        inputs: Mapping[str, Any] | None = None,
        identity: Identity | None = None,
    ) -> Manifest:
        """Replace an artifact by an edited copy under the same key; a reference to the old attempt finds the
        new one.

        The copy keeps the content digest, by which others name what they were made from, unless the artifact
        has an identity, which then decides.

        Args:
            manifest: of the artifact.
            edit: changes the copied files below a folder and returns the metadata that changed with them.
            inputs, identity: of the copy. Default: those of the artifact.
        """
        with self.create(
            manifest.case, manifest.stage, manifest.key, version=manifest.version, seed=manifest.seed
        ) as draft:
            shutil.copytree(
                self.folder(manifest), draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST)
            )
            draft.identity = identity or manifest.identity
            draft.kept_digest = manifest.content_digest if draft.identity is None else None
            metadata = {**manifest.metadata, **edit(draft.path)}
            copy = draft.commit(
                settings=manifest.settings,
                inputs=manifest.inputs if inputs is None else inputs,
                metadata=metadata,
                checks=manifest.checks,
            )
        self.delete(manifest)
        return copy

    def work_folder(self, case: str, stage: str, key: str) -> Path:
        """Return the local folder of unfinished work on an artifact; a later attempt finds it."""
        return self.make_folder(self._work_root / case / stage / key)

    def work_folders(self, case: str, stage: str) -> list[Path]:
        """Return the folders of unfinished work on artifacts of a stage on this machine; the name of each is
        the artifact's key.
        """
        root = self._work_root / case / stage
        return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []

    def stored_work(self, case: str, stage: str) -> list[str]:
        """Return the keys of the artifacts of a stage of which a remote store has checkpoints."""
        return [] if self.is_local else self.names(checkpoints_ref(case, stage, "").rstrip("/"))

    @property
    def _work_root(self) -> Path:
        return Path(self.url, "work") if self.is_local else self.cache_folder / "work"

    def keep_traceback(self, case: str, error: BaseException) -> str:
        """Write the traceback of an error that nobody foresaw, with all messages, into the store and nowhere
        else, as a message may quote a document; return one line for people who may not read documents.
        """
        text = without_secrets("".join(traceback.format_exception(error)))
        name = f"{_tracebacks(case)}/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.txt"
        try:
            self.write_bytes(name, text.encode("utf-8", "backslashreplace"))
        except Exception as failure:  # the store itself may be what failed
            return (
                f"{without_message(error)}; its message could not be written to {self.url}"
                f" ({type(failure).__name__})"
            )
        return f"{without_message(error)}; its message, which may quote a document, is in {self.url}/{name}"

    def delete_tracebacks(self, case: str) -> int:
        """Remove the tracebacks of a use case; return how many there were."""
        count = len(self.names(_tracebacks(case)))
        self.remove_folder(_tracebacks(case))
        return count


def _tracebacks(case: str) -> str:
    return f"failures/{case}/tracebacks"


def _rewritten(case: str) -> str:
    return f"{case}/rewritten"
