"""What this machine, a project and its use cases are open to, seen from files, processes and packages alone:
nothing is asked of a network.
"""

import json
import os
import re
import stat
import time
import tomllib
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from fullft_assets.base_model import find_base_model, stated_licence
from fullft_assets.base_model.header import PICKLED
from fullft_assets.errors import FullftError
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store


class Finding(NamedTuple):
    """Something to fix; one of severity `error` keeps every candidate from becoming champion."""

    id: str
    severity: Literal["error", "warning"]
    evidence: str
    fix: str

    def accepted_by(self, lines: Iterable[tuple[str, str]]) -> Self:
        """Return the finding as a warning where somebody accepted it: see `read_accepted`."""
        if any(name == self.id and part in self.evidence for name, part in lines):
            return self._replace(severity="warning", evidence=f"{self.evidence} (accepted)")
        return self


def read_accepted(home: Path) -> list[tuple[str, str]]:
    """Return the findings that `security/accepted.txt` of Dagster's home accepts: of each line the id and,
    behind it, a part of the evidence; what follows `#` says why.
    """
    path = home / "security" / "accepted.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    parts = [line.partition("#")[0].strip().partition(" ") for line in lines]
    return [(name, part.strip()) for name, _, part in parts if name]


#: Forms of well-known tokens, as their issuers document them.
_TOKENS = {
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b",
    "a private key": r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----(?:[A-Za-z0-9+/=\s]|\\n){100}",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{82})\b",
    "a token of GitLab": r"\bglpat-[\w-]{20,}",
    "a token of the Hugging Face hub": r"\bhf_[A-Za-z]{34}\b",
    "a token of Slack": r"\bxox[abprs]-[\w-]{20,}|hooks\.slack\.com/services/T\w+/B\w+/\w{20,}",
    "a key of Google": r"\bAIza[\w-]{35}\b",
    "a key of Stripe": r"\b[rs]k_live_[A-Za-z0-9]{24,}\b",
    "a key of OpenAI or Anthropic": r"\bsk-(?:ant-|proj-)?[\w-]{40,}",
    "a token of PyPI": r"\bpypi-AgE[\w-]{50,}",
    "a JSON web token": r"\beyJ[\w-]{15,}\.eyJ[\w-]{15,}\.[\w-]{15,}",
}
_TOKEN = re.compile("|".join(f"({pattern})" for pattern in _TOKENS.values()))
#: AWS's documentation writes its keys so, and so do tests.
_EXAMPLE = re.compile(r"EXAMPLE|gitleaks:allow")
_TEMPLATE = re.compile(r"\{\{.*?\}\}")
_IN_ADDRESS = re.compile(
    r"://[^\s/?#:@]+:[^\s/?#@]+@"
    r"|[?&](?:token|access_token|api_?key|password|secret|signature|sig)=[^\s&#\"']{8,}",
    re.IGNORECASE,
)
_TEXT = {
    ".py",
    ".yaml",
    ".yml",
    ".toml",
    ".json",
    ".ini",
    ".cfg",
    ".conf",
    ".sh",
    ".env",
    ".md",
    ".txt",
    ".tf",
}
_MOST_BYTES = 500_000
#: A folder with more files has data.
_MOST_FILES = 1_000
#: Folders of a project that are no part of its source.
_NOT_SOURCE = {"data", "build", "dist", "node_modules", "venv", "site", "__pycache__"}
_SECRET_FIX = (
    "replace it where it was issued, take it out of the file and of Git's history, and read it from the"
    " environment"
)


def of_modes(home: Path, store: Store) -> Iterator[Finding]:
    """Yield a finding for each way in which other users may read or change Dagster's home or a local
    store.
    """
    # A home that its group may write to was opened for the group.
    if (mode := _mode(home)) & (0o007 if mode & 0o020 else 0o077):
        yield Finding(
            "home_open",
            "error" if mode & 0o002 else "warning",
            f"{home} has the rights {mode:o}: others may {'change' if mode & 0o002 else 'read'} it",
            f"chmod {'o-rwx' if mode & 0o020 else 700} {home}",
        )
    if store.is_local and (mode := _mode(Path(store.url))) & 0o007:
        yield Finding(
            "store_open",
            "error",
            f"{store.url} has the rights {mode:o}: every user may reach documents and weights",
            f"chmod o-rwx {store.url}",
        )


def _mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode) if folder.is_dir() else 0


def of_secrets(root: Path, home: Path, store: Store, use_cases: Sequence[UseCase]) -> Iterator[Finding]:
    """Yield the secrets in the YAML of use cases, in the project's source and in the files directly in
    Dagster's home; a file of variables for this user alone may have some. Documents are not looked at.
    """
    of_use_cases = {use_case.yaml_path.resolve() for use_case in use_cases}
    data = {
        home.resolve(),
        Path(store.url).resolve(),
        *(path for case in use_cases for path in _data_of(case)),
    }
    for path in sorted({*of_use_cases, *_source(root, data), *(path.resolve() for path in home.glob("*"))}):
        if not path.is_file() or (path.suffix not in _TEXT and not path.name.startswith(".env")):
            continue
        is_yaml = path in of_use_cases
        is_variables = path.suffix == ".env" or path.name.startswith(".env")
        if (path.stat().st_mode & 0o077 or not is_variables) and (
            secret := _secret_in(path, is_yaml=is_yaml)
        ):
            kind = "secret_in_yaml" if is_yaml else "secret_in_file"
            if is_variables:
                yield Finding(kind, "warning", secret, f"chmod 600 {path}, and keep it out of Git")
            else:
                yield Finding(kind, "error", secret, _SECRET_FIX)


def _data_of(use_case: UseCase) -> Iterator[Path]:
    settings = use_case.settings
    sections = (settings.documents, settings.monitoring, settings.snapshot.replay, settings.snapshot.general)
    yield from (
        use_case.resolve(str(section.path)).resolve()
        for section in sections
        if section is not None and section.path is not None and "://" not in str(section.path)
    )


def _source(root: Path, data: Collection[Path] = ()) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names[:] = [
            name
            for name in names
            if name not in _NOT_SOURCE
            and not name.startswith(".")
            and not Path(folder, name, "pyvenv.cfg").exists()
            and Path(folder, name).resolve() not in data
        ]
        if len(files) <= _MOST_FILES:
            yield from (Path(folder, name).resolve() for name in files)


def _secret_in(path: Path, *, is_yaml: bool) -> str | None:
    if not os.access(path, os.R_OK) or path.stat().st_size > _MOST_BYTES:
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    for match in _TOKEN.finditer(text):
        if not _EXAMPLE.search(text[text.rfind("\n", 0, match.start()) + 1 :].partition("\n")[0]):
            number = text.count("\n", 0, match.start()) + 1
            return f"{path}:{number}: {[*_TOKENS][(match.lastindex or 1) - 1]}"
    for number, line in enumerate(text.splitlines() if is_yaml else (), start=1):
        if _IN_ADDRESS.search(_TEMPLATE.sub("", line.partition("# ")[0])):
            return f"{path}:{number}: a password or key in an address"
    return None


#: Variable with the file that has the key of the login in front of the UI: see `cli.webserver`.
LOGIN_KEY_VARIABLE = "FULLFT_LOGIN_KEY"
_WEBSERVERS = ("fullft_assets.cli.webserver", "dagster-webserver", "dagster_webserver")


def of_web_servers(home: Path) -> Iterator[Finding]:
    """Yield the web servers of this home that answer on every interface of this machine and know no login."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if not any(name in word for word in process.cmdline() for name in _WEBSERVERS):
                continue
            variables = process.environ()
            if variables.get("DAGSTER_HOME") != str(home) or variables.get(LOGIN_KEY_VARIABLE):
                continue
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.ip in ("0.0.0.0", "::"):
                    yield Finding(
                        "ui_open",
                        # The network of a container reaches no further than it is published.
                        "warning" if Path("/.dockerenv").exists() else "error",
                        f"process {process.pid} answers on port {connection.laddr.port} of every interface",
                        f"bind it to 127.0.0.1, or put a login before it ({LOGIN_KEY_VARIABLE})",
                    )


def of_model(use_case: UseCase, licences: list[str] | None) -> Iterator[Finding]:
    """Yield the code and the pickles in the folder of a use case's base model, and its licence unless that is
    a listed one.
    """
    try:
        folder = Path(find_base_model(use_case.settings, use_case.project_root))
    except FullftError:
        return  # `fullft check` says so
    for name, kind, patterns, fix in (
        (
            "model_code",
            "Python",
            ("*.py",),
            "remove them; where trust_remote_code lets them run, read them before each change",
        ),
        ("model_pickle", "pickled", PICKLED, "remove them; safetensors run no code"),
    ):
        if files := sorted(path.name for pattern in patterns for path in folder.rglob(pattern)):
            yield Finding(
                name,
                "warning",
                f"{use_case.name}: {folder} has {kind} files: {', '.join(files[:3])}",
                fix,
            )
    yield from _of_licence(f"{use_case.name}: base model {use_case.settings.base_model}", folder, licences)


def of_data(use_case: UseCase, licences: list[str] | None) -> Iterator[Finding]:
    """Yield the licence that a folder of documents or general text states, unless it is a listed one."""
    snapshot = use_case.settings.snapshot
    for section in (use_case.settings.documents, snapshot.replay, snapshot.general):
        if section is not None and "://" not in str(section.path):
            folder = use_case.resolve(str(section.path))
            if stated_licence(folder) is not None:
                yield from _of_licence(f"{use_case.name}: {section.path}", folder, licences)


#: Licences that allow to use and change, also for money. A project's own list takes their place.
_LICENCES = [
    "apache*",
    "mit*",
    "bsd*",
    "isc*",
    "0bsd*",
    "cc0*",
    "cc-by-4*",
    "cc-by-3*",
    "cc-by-sa*",
    "unlicense*",
]


def read_licences(home: Path) -> list[str] | None:
    """Return the licences in `security/licences.txt` of Dagster's home, one a line, `*` for anything; None:
    there is no such list.
    """
    path = home / "security" / "licences.txt"
    if not path.is_file():
        return None
    text = re.sub("#.*", "", path.read_text(encoding="utf-8"))
    return [line for line in map(str.strip, text.lower().splitlines()) if line]


def _of_licence(subject: str, folder: Path, licences: list[str] | None) -> Iterator[Finding]:
    licence = stated_licence(folder)
    if licence is None:
        yield Finding(
            "licence_missing", "warning", f"{subject} states no licence", "ask its owner, and write a README"
        )
        return
    name = licence.lower().rpartition(": ")[2]
    if not any(fnmatchcase(name, pattern) for pattern in (_LICENCES if licences is None else licences)):
        yield Finding(
            "licence_unlisted",
            "warning" if licences is None else "error",
            f"{subject} has the licence `{licence}`",
            "read it; list it in security/licences.txt of Dagster's home, or use another",
        )


#: A list of vulnerabilities is old after so many days.
_OLD_DAYS = 30
_OSV = "download OSV's PyPI/all.zip to security/osv.zip of Dagster's home again"


def of_packages(home: Path) -> Iterator[Finding]:
    """Yield the installed packages with a known vulnerability, by `security/osv.zip` of Dagster's home: the
    records of osv.dev for PyPI. The newest record says how old the list is.
    """
    path = home / "security" / "osv.zip"
    if not path.is_file():
        yield Finding("osv_missing", "warning", f"{path} is missing, so no package was compared", _OSV)
        return
    versions = _installed_versions()
    newest = ""
    advisories: dict[str, dict[str, Mapping[str, Any]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for file in archive.namelist():
                advisory = json.loads(archive.read(file))
                newest = max(newest, advisory["modified"])
                if "withdrawn" in advisory:
                    continue
                for affected in advisory.get("affected", ()):
                    package = canonicalize_name(affected.get("package", {}).get("name", ""))
                    if package in versions and _is_affected(affected, versions[package]):
                        # Several databases describe one vulnerability; GitHub's says how grave it is.
                        name, *_ = sorted([*advisory.get("aliases", ()), advisory["id"]])
                        by_name = advisories.setdefault(package, {})
                        if name not in by_name or _is_grave(advisory):
                            by_name[name] = advisory
        age = (time.time() - datetime.fromisoformat(newest[:19]).replace(tzinfo=UTC).timestamp()) / 86_400
    except (zipfile.BadZipFile, ValueError, KeyError) as error:
        yield Finding("osv_missing", "warning", f"{path} cannot be read ({type(error).__name__})", _OSV)
        return
    if age > _OLD_DAYS:
        yield Finding("osv_old", "warning", f"{path} is {age:.0f} days old", _OSV)
    for package, by_name in sorted(advisories.items()):
        fixes = {fix for advisory in by_name.values() for fix in _fixed_versions(advisory, package)}
        # What nobody has fixed closes no gate: there is nothing to do.
        is_grave = any(
            _is_grave(advisory) and [*_fixed_versions(advisory, package)] for advisory in by_name.values()
        )
        yield Finding(
            "package_vulnerable",
            "error" if is_grave else "warning",
            f"{package} {versions[package]}: {', '.join(sorted(by_name))}",
            f"install a release that fixes it ({', '.join(sorted(fixes)) or 'none yet'})",
        )


def of_account(home: Path) -> Iterator[Finding]:
    """Yield Prowler's findings in an AWS account, under its ids: the failed checks in
    `security/prowler.ocsf.json` of Dagster's home, in the Open Cybersecurity Schema.
    """
    path = home / "security" / "prowler.ocsf.json"
    if not path.is_file():
        return
    fix = "run `prowler aws --output-formats json-ocsf` again"
    try:
        results = json.loads(path.read_bytes())
        for result in results:
            if result["status_code"] == "FAIL":
                resources = ", ".join(resource["uid"] for resource in result["resources"])
                yield Finding(
                    result["metadata"]["event_code"],
                    "error" if result["severity"] in ("High", "Critical") else "warning",
                    f"{resources}: {result['status_detail']}",
                    result["remediation"]["desc"],
                )
        if time.time() - max((result["time"] for result in results), default=0) > _OLD_DAYS * 86_400:
            yield Finding("prowler_old", "warning", f"{path} is over {_OLD_DAYS} days old", fix)
    except (ValueError, KeyError, TypeError) as error:
        yield Finding("prowler_old", "warning", f"{path} cannot be read ({type(error).__name__})", fix)


def _installed_versions() -> dict[str, str]:
    return {
        canonicalize_name(package.name): package.version
        for package in metadata.distributions()
        if package.name
    }


def _is_grave(advisory: Mapping[str, Any]) -> bool:
    return advisory.get("database_specific", {}).get("severity") in ("HIGH", "CRITICAL")


def _is_affected(affected: Mapping[str, Any], version: str) -> bool:
    """Return whether a version is in one of the ranges of OSV's schema, or in its list."""
    is_affected = version in affected.get("versions", ())
    with suppress(InvalidVersion):
        for version_range in affected.get("ranges", ()):
            if version_range.get("type") != "ECOSYSTEM":  # of Git, whose versions are commits
                continue
            is_in = False
            for kind, bound in (item for event in version_range["events"] for item in event.items()):
                is_over = Version(version) >= Version(bound) and (kind, bound) != ("last_affected", version)
                is_in = is_in or is_over if kind == "introduced" else is_in and not is_over
            is_affected = is_affected or is_in
    return is_affected


def _fixed_versions(advisory: Mapping[str, Any], package: str) -> Iterator[str]:
    for affected in advisory.get("affected", ()):
        if canonicalize_name(affected.get("package", {}).get("name", "")) == package:
            for version_range in affected.get("ranges", ()):
                yield from (event["fixed"] for event in version_range.get("events", ()) if "fixed" in event)


_PINNED = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;]+)", re.MULTILINE)


def of_lock(root: Path) -> Iterator[Finding]:
    """Yield that installed packages differ from the project's lock file, or that there is no lock file."""
    locks = [
        root / name for name in ("uv.lock.txt", "uv.lock", "requirements.txt") if (root / name).is_file()
    ]
    if not locks:
        yield Finding(
            "lock_missing",
            "warning",
            f"{root} has no uv.lock and no requirements.txt with versions",
            "`uv lock` writes one",
        )
        return
    text = locks[0].read_text(encoding="utf-8", errors="replace")
    if locks[0].name == "uv.lock":
        try:
            packages = tomllib.loads(text)["package"]
        except (ValueError, KeyError):
            yield Finding(
                "lock_missing", "warning", f"{locks[0]} cannot be read", "`uv lock` writes it again"
            )
            return
        pins = {package["name"]: package.get("version", "") for package in packages}
    else:
        pins = {canonicalize_name(name): version for name, version in _PINNED.findall(text)}
    versions = _installed_versions()
    differences = sorted(
        f"{name} {versions[name]} instead of {pin}"
        for name, pin in pins.items()
        # torch for CPUs is the same release under a local version.
        if pin and name in versions and versions[name].partition("+")[0] != pin.partition("+")[0]
    )
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        yield Finding(
            "lock_differs",
            "warning",
            f"{locks[0]}: {', '.join(differences[:3])}{more}",
            "install what the lock says, or lock again",
        )


_IMAGE = re.compile(r"^\s*(?:image:|FROM)\s+[\"']?([\w.-]+[/:][\w./:@-]+)", re.MULTILINE)


def of_images(root: Path) -> Iterator[Finding]:
    """Yield the images that files of containers name by a tag, which can move."""
    for path in sorted(_source(root)):
        if not re.fullmatch(r"(?i)(docker-)?compose.*\.ya?ml|dockerfile(\.\w+)?", path.name):
            continue
        # An image that is built here is in no registry.
        images = {
            name
            for name in _IMAGE.findall(path.read_text(encoding="utf-8", errors="replace"))
            if "@sha256:" not in name and not name.endswith(":local")
        }
        if images:
            yield Finding(
                "image_by_tag",
                "warning",
                f"{path}: {', '.join(sorted(images))}",
                "write IMAGE@sha256:..., as `docker buildx imagetools inspect IMAGE` prints it",
            )
