"""`fullft`: the commands for terminals and scripts. Dagster's UI runs the same assets and jobs, a roll-back
among them.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

from fullft_assets.artifacts import CHAMPION_MODEL, REPORT_PAGE
from fullft_assets.checking.project import (
    Place,
    find_defs,
    find_project_root,
    find_use_case,
    find_use_cases,
    name_at,
    read_dg_project,
    require_own_name,
)
from fullft_assets.checking.validation import load_use_case
from fullft_assets.errors import FullftError, SettingsError
from fullft_assets.security import Act, Person, overrule
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store, digest
from fullft_assets.store.buckets import BucketError

#: Returns the exit status; None: 0.
Command = Callable[[argparse.Namespace], int | None]
#: Names and options of an argument, as `argparse` takes them.
Argument = tuple[tuple[str, ...], dict[str, Any]]
#: Function, help text and arguments of each command, by its name.
_COMMANDS: dict[str, tuple[Command, str, list[Argument]]] = {}
#: Lines of an erasure list that are named where nothing was found.
_SHOWN_LINES = 10


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do it; an error that the user can fix is printed without a traceback."""
    parser = argparse.ArgumentParser(prog="fullft", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (function, help_text, its_arguments) in _COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        for names, keywords in its_arguments:
            command.add_argument(*names, **keywords)
        command.set_defaults(command=function)
    options, other_arguments = parser.parse_known_args(arguments)
    if other_arguments and options.command is not _ui:
        parser.error(f"unrecognized arguments: {' '.join(other_arguments)}")
    options.others = other_arguments
    try:
        options.defs = options.defs or find_defs(Path.cwd())
        with ExitStack() as options.account:
            return options.command(options) or 0
    except KeyboardInterrupt:
        print("\nstopped; the same command continues where it stopped", file=sys.stderr)
        return 130
    except FullftError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        # A folder that cannot be made, a disk that is full, a bucket out of reach: not the code's fault.
        if error.filename is None and not isinstance(error, (BucketError, PermissionError)):
            raise
        print(error if error.filename is None else f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def _argument(*names: str, **options: Any) -> Argument:
    return names, options


def _flag(name: str, help_text: str) -> Argument:
    return _argument(name, action="store_true", help=help_text)


_KEY = _argument(
    "--key",
    type=Path,
    metavar="FILE",
    help="your SSH key, where release.approvers say who may do this; with an agent, the public one",
)
_USE_CASE = _argument("use_case", help="name of the use case")
_DEFS = _argument(
    "--defs", type=Path, help="folder with the use cases (default: those of the project around this folder)"
)


def _command(help_text: str, *arguments: Argument, of_use_case: bool = True) -> Callable[[Command], Command]:
    """Return a decorator that registers the function `_NAME` as the command NAME."""

    def register(function: Command) -> Command:
        its_arguments = [*([_USE_CASE] if of_use_case else []), _DEFS, *arguments]
        _COMMANDS[function.__name__.removeprefix("_")] = function, help_text, its_arguments
        return function

    return register


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number >= 1")
    return int(text)


def _load(options: argparse.Namespace) -> UseCase:
    from fullft_assets.demos import prepare

    location = find_use_case(options.use_case, options.defs)
    prepare(location.path)
    use_case = load_use_case(*location)
    _use_home(use_case.project_root)
    _follow_aws(options, use_case.project_root, {use_case.name: use_case.yaml_path})
    return use_case


def _follow_aws(options: argparse.Namespace, project_root: Path, yaml_paths: dict[str, Path]) -> None:
    """Speak to AWS as the project's code location does, which takes seconds to load: only where a bucket is
    named.
    """
    texts = f"{os.environ}{[path.read_bytes() for path in yaml_paths.values()]}"
    if (
        "s3://" in texts
        and util.find_spec("dagster_aws") is not None
        and ((project_root / "workspace.yaml").is_file() or read_dg_project(project_root))
    ):
        from fullft_assets.cli.workspace import account_of_project

        options.account.enter_context(account_of_project(project_root, set(yaml_paths)))


def _use_home(project_root: Path) -> None:
    home = project_root / ".home"
    dagster_home = os.environ.get("DAGSTER_HOME")
    if dagster_home and Path(dagster_home) != home:
        # As Dagster reads it.
        folder = Path(dagster_home).expanduser()
        if not folder.is_absolute() or not folder.is_dir():
            fix = "make it" if folder.is_absolute() else "give an absolute path"
            raise SettingsError(
                f"DAGSTER_HOME={dagster_home} is not a folder that Dagster can use; {fix}, or unset it for"
                f" {project_root / '.home'}"
            )
        return
    home.mkdir(exist_ok=True)
    # A project's own home, and what this process writes, is kept from others, unless its group may write.
    if not home.stat().st_mode & 0o022:
        os.umask(0o077)
        with suppress(OSError):  # somebody else made it, or the file system knows no rights
            home.chmod(0o700)
    settings = project_root / "dagster.yaml"
    if settings.is_file() and not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").symlink_to(settings)
    os.environ["DAGSTER_HOME"] = str(home)


@_command("Ingest what is new, make the model, watch production, and sum up.")
def _run(options: argparse.Namespace) -> int:
    from fullft_assets.cli.run import Driver, drive
    from fullft_assets.cli.summary import summary

    return drive(_load(options), Driver.run, summary)


@_command("Ingest what is new, freeze the snapshot, and name its data report; no model is made.")
def _ingest(options: argparse.Namespace) -> int:
    from fullft_assets.cli.run import Driver, drive
    from fullft_assets.cli.summary import data_summary

    return drive(_load(options), Driver.ingest, data_summary)


@_command(
    "Print where the evaluation report, or the data report, of the newest run is.",
    _argument(
        "which", nargs="?", choices=["evaluation", "data"], default="evaluation", help="default: evaluation"
    ),
    _argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the page to this file; that of an evaluation says how the release ended",
    ),
)
def _report(options: argparse.Namespace) -> None:
    from fullft_assets.cli.summary import copy_report, newest_report

    use_case, store = _open(options)
    artifact = newest_report(use_case, store, options.which)
    print(
        store.folder(artifact) / REPORT_PAGE
        if options.out is None
        else copy_report(store, artifact, options.out)
    )


@_command(
    "Validate a use case in seconds, without loading a model.",
    _argument("use_case", nargs="?", help="name of the use case (default: all)"),
    of_use_case=False,
)
def _check(options: argparse.Namespace) -> int:
    from fullft_assets.checking.check import check_use_case
    from fullft_assets.demos import is_dormant, prepare

    def check(location: Place) -> None:
        prepare(location.path)
        use_case = load_use_case(*location, with_data=True)
        require_own_name(use_case.name, location, options.defs)
        if "post_processing:" in location.path.read_text(encoding="utf-8"):
            # Imports Dagster.
            from fullft_assets.component import unloadable

            if (problem := unloadable(location, find_use_cases(options.defs))) is not None:
                raise SettingsError(problem)
        print(check_use_case(use_case))

    if options.use_case is not None:
        check(find_use_case(options.use_case, options.defs))
        return 0
    problems: list[str] = []
    for location in find_use_cases(options.defs):
        try:
            if not is_dormant(location.path):
                check(location)
        except FullftError as error:
            problems.append(str(error))
    print("\n".join(problems), end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


@_command(
    "Say whether a training fits, how long it takes and what it costs, here and on machines to rent,"
    " without a GPU."
)
def _plan(options: argparse.Namespace) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    use_case, store = _open(options)
    # Imports torch.
    from fullft_assets.cli.plan import plan

    print("\n".join(plan(use_case, store)))


@_command(
    "Write a demo's sample delivery, and its model, unless they are there.",
    _argument(
        "use_case", nargs="?", help="name of the use case (default: every demo that needs no model written)"
    ),
    of_use_case=False,
)
def _prepare(options: argparse.Namespace) -> None:
    from fullft_assets.demos import is_dormant, prepare

    name = options.use_case
    places = find_use_cases(options.defs) if name is None else [find_use_case(name, options.defs)]
    for path in [path for path, _ in places if name is not None or not is_dormant(path)]:
        if not prepare(path) and name is not None:
            print(f"{name} is no demo: it reads what documents.path names, and nothing was written")


@_command(
    "Open Dagster's UI with the daemon, for this machine alone; takes the options of `dagster dev`.",
    of_use_case=False,
)
def _ui(options: argparse.Namespace) -> None:
    from fullft_assets.cli.webserver import develop

    _use_home(find_project_root(Path.cwd() / "defs.yaml"))
    develop(options.others)


@_command(
    "Show the whole loop on a small use case with the UI open, step by step, in ten minutes.",
    _argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("tour"),
        help="new folder for all that it writes (default: tour)",
    ),
    of_use_case=False,
)
def _tour(options: argparse.Namespace) -> int:
    from fullft_assets.cli.tour import tour

    return tour(options.folder)


def _open(options: argparse.Namespace) -> tuple[UseCase, Store]:
    import dagster as dg

    from fullft_assets.resources import open_store

    use_case = _load(options)
    with dg.DagsterInstance.get() as instance:
        return use_case, open_store(use_case, instance)


@_command("Print the names of delivered files, which logs and the UI only show as `file-...`.")
def _files(options: argparse.Namespace) -> None:
    from fullft_assets import documents

    use_case, store = _open(options)
    for alias, batch, path in documents.named_files(store, use_case.name):
        print(f"{alias}  {batch}  {path}")


@_command(
    "Classify a text, or each text of a file, with the champion; a language model continues it, or"
    " answers it (sft).",
    _argument("text", nargs="?", help="the text"),
    _argument(
        "--file",
        type=Path,
        help=(
            "instead: JSON lines or CSV with the field documents.text, else a text a line; answered in JSON"
            " lines"
        ),
    ),
    _argument("--out", type=Path, help="with --file: write to this file (default: print)"),
    _argument(
        "--max-new-tokens",
        type=_count,
        default=100,
        help="maximum number of tokens that a language model writes (default: 100)",
    ),
)
def _predict(options: argparse.Namespace) -> int:
    if (options.text is None) == (options.file is None) or (options.out is not None and options.file is None):
        raise FullftError("predict: give a text or --file; --out goes with --file")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    use_case, store = _open(options)
    # Imports torch, as no other command does.
    from fullft_assets.cli.predict import predict, predict_file

    if options.file is not None:
        return 1 if predict_file(use_case, store, options.file, options.out, options.max_new_tokens) else 0
    predict(use_case, store, options.text, options.max_new_tokens)
    return 0


@_command(
    "Write production documents to a file, to be labelled: those far from the training data, or with"
    " --random a random sample. With --team they become a labelling job of Ground Truth.",
    _argument("out", help="the file; of argilla and of a labelling job (s3://bucket/prefix) the folder"),
    _argument(
        "--format",
        choices=["jsonl", "label_studio", "argilla", "ground_truth", "csv"],
        default="jsonl",
        help=(
            "jsonl, label_studio (tasks to import, and the labelling interface in OUT.xml), argilla (a folder"
            " for rg.Dataset.from_disk), ground_truth (an input manifest) or csv (default: jsonl)"
        ),
    ),
    _argument("--documents", type=_count, default=300, help="maximum number of documents (default: 300)"),
    _argument(
        "--windows", type=_count, default=3, help="newest windows that they are taken from (default: 3)"
    ),
    _flag("--random", "a random sample of documents without a label, for live_quality"),
    _argument("--team", metavar="ARN", help="create a labelling job for this work team"),
    _argument("--role", metavar="ARN", help="role of the labelling job"),
    _argument("--kms-key", metavar="ARN", help="key that encrypts the labelling job's input and output"),
    _argument("--annotators", type=_count, default=1, help="people who label each document (default: 1)"),
    _argument("--usd", type=float, help="price of an answer, for the public workforce alone"),
)
def _export(options: argparse.Namespace) -> None:
    from fullft_assets.cli.export import export
    from fullft_assets.cli.ground_truth import check_job, create_job

    use_case, store = _open(options)
    job: partial[int] | None = None
    if options.team and options.role and options.format == "ground_truth":
        check_job(use_case, options.out, options.team, options.usd)
        job = partial(
            create_job,
            use_case,
            options.out,
            team=options.team,
            role=options.role,
            kms_key=options.kms_key,
            annotators=options.annotators,
            usd=options.usd,
        )
    elif options.team or options.role or options.kms_key or options.usd or options.out.startswith("s3://"):
        raise FullftError("export: a labelling job takes --format ground_truth, --team and --role")
    count = export(
        use_case,
        store,
        options.out,
        format_name=options.format,
        most=options.documents,
        num_windows=options.windows,
        at_random=options.random,
        job=job,
    )
    print(f"{count:,} documents of {use_case.name} in {options.out}")


@_command(
    "Bring the previous champion back.",
    _argument("--reason", required=True, help="kept with the champion's history"),
    _KEY,
)
def _rollback(options: argparse.Namespace) -> None:
    from fullft_assets import release
    from fullft_assets.resources import set_latest

    use_case, store = _open(options)
    in_use = release.read_champion(store, use_case.name)
    about = "" if in_use is None else in_use.checkpoint

    def roll_back() -> None:
        champion = release.rollback(
            store, use_case.name, reason=options.reason, by=_person(options).name, expected=about
        )
        card = release.card_of(store, use_case.name, champion)
        if card is not None:
            set_latest(store, use_case.name, CHAMPION_MODEL, card)
        print(f"champion of {use_case.name} is again {champion.checkpoint} (score {champion.score:.3f})")
        release.try_to_hand_over(store, use_case, print, lambda line: print(line, file=sys.stderr))

    _overrule(options, use_case, store, Act("rollback", about, options.reason), roll_back)


@_command(
    "List what the store keeps and nothing in use was made from, by the settings of `retention`; --yes"
    " removes it.",
    _flag("--yes", "remove it"),
)
def _clean(options: argparse.Namespace) -> None:
    import dagster as dg

    from fullft_assets import retention
    from fullft_assets.automation import idle_from_now

    use_case, store = _open(options)
    with dg.DagsterInstance.get() as instance:
        if options.yes:
            plan = retention.clean(store, use_case, require_idle=idle_from_now(use_case.name, instance))
        else:
            plan = retention.plan(store, use_case)
    print(
        "\n".join(
            [
                *plan.lines,
                (
                    "removed"
                    if options.yes
                    else f"nothing was removed; `fullft clean {use_case.name} --yes` does it"
                ),
            ]
        )
    )


@_command(
    "Erase documents everywhere in the store, and name the models that were trained on them.",
    _argument("list", type=Path, help="text file with one document id (or group) a line"),
    _argument(
        "--by",
        choices=["id", "group"],
        default="id",
        help="what is listed: document ids, or groups (a patient, a client)",
    ),
    _argument("--reason", default="", help="kept with the record of the erasure"),
    _KEY,
)
def _erase(options: argparse.Namespace) -> int:
    from fullft_assets import erasure

    use_case, store = _open(options)
    if options.by == "group" and use_case.settings.examples.group is None:
        raise SettingsError(
            f"{use_case.yaml_path}: examples.group is not set, so no document has a group; set it, or"
            " list ids"
        )
    line_numbers = erasure.read_list(options.list)
    reports: list[erasure.ErasureReport] = []

    def erase() -> None:
        reports.append(
            erasure.erase(store, use_case.name, line_numbers, by=options.by, reason=options.reason)
        )

    act = Act("erase", digest([options.by, *sorted(line_numbers)]), options.reason)
    _overrule(options, use_case, store, act, erase)
    for report in reports:
        print("\n".join(report.lines()))
        for name in report.missing[:_SHOWN_LINES]:
            print(
                f"{options.list}:{line_numbers[name]}: `{name}`: no document has this {options.by}; fix the"
                " line and erase again",
                file=sys.stderr,
            )
        if len(report.missing) > _SHOWN_LINES:
            print(
                f"{options.list}: {len(report.missing) - _SHOWN_LINES:,} more lines were not found",
                file=sys.stderr,
            )
    return 1 if any(report.missing for report in reports) else 0


def _person(options: argparse.Namespace) -> Person:
    import getpass

    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user without an account
        name = str(os.getuid())
    return Person(name, key=options.key)


def _overrule(
    options: argparse.Namespace, use_case: UseCase, store: Store, act: Act, do: Callable[[], None]
) -> None:
    """Have done what a person asks for, or print what it waits for."""
    if (waits := overrule(store, use_case, act, _person(options), do)) is not None:
        print(waits)


@_command(
    "Say what the platform is open to, and whether its record is whole; 1 where something is an error.",
    of_use_case=False,
)
def _audit(options: argparse.Namespace) -> int:
    import dagster as dg

    from fullft_assets.assets.security import audit_all

    project_root = find_project_root(options.defs / "defs.yaml")
    _use_home(project_root)
    _follow_aws(
        options, project_root, {name_at(location): location.path for location in find_use_cases(options.defs)}
    )
    with dg.DagsterInstance.get() as instance:
        findings, records = audit_all(options.defs, instance)
    for finding in findings:
        print(f"{finding.severity}  {finding.id}: {finding.evidence}; {finding.fix}")
    for url, record in records.items():
        newest = f", the newest one with the digest {record.digest}" if record.entries else ""
        print(record.broken or f"record of {url}: {len(record.entries):,} entries, whole{newest}")
    return 1 if any(finding.severity == "error" for finding in findings) else 0
