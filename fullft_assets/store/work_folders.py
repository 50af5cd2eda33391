"""Work folders: unfinished work on artifacts (checkpoints), kept until the artifact exists: on this machine,
and of a remote store there, too.
"""

from __future__ import annotations

from pathlib import Path

from fullft_assets.store.files import Files


def checkpoints_ref(case: str, stage: str, key: str) -> str:
    """Return the folder in a remote store with the checkpoints of unfinished work, which is also the name of
    the lease on them.
    """
    return f"checkpoints/{case}/{stage}/{key}"


class WorkFolders(Files):
    """Folders of unfinished work, by the key of the artifact."""

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
