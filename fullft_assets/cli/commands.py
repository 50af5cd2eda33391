"""`fullft`: run, check, prepare, predict, rollback, erase. The UI can do all but the check; this is for terminals and scripts."""

import argparse
import os
import sys
import traceback
from pathlib import Path

from fullft_assets.config.validation import find_defs, find_use_case, load_use_case
from fullft_assets.errors import FullftError, SettingsError

#: Lines of an erasure list that are named where nothing was found.
_SHOWN_LINES = 10


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do it; an error that the user can mend is printed as its lines, without a traceback."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.defs = parsed.defs or find_defs(Path.cwd())
        return parsed.command(parsed)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except FullftError as error:
        if parsed.traceback:
            traceback.print_exc()
        else:
            print(error, file=sys.stderr)
        return 1
    except OSError as error:
        # A folder that cannot be made, a disk that is full: the machine's matter, not the code's.
        if parsed.traceback or error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}; `fullft --traceback ...` shows where", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fullft", description=__doc__)
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command, help_text: str, *, use_case: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text)
        if use_case:
            sub.add_argument("use_case", help="name of the use case")
        sub.add_argument("--defs", type=Path, help="folder with the use cases (default: those of the project around this folder)")
        sub.set_defaults(command=command)
        return sub

    add("run", _run, "Ingest what is new, make the model, watch production, and sum up.")
    add("check", _check, "Validate a use case in seconds, without loading a model.")
    prepared = add("prepare", _prepare, "Write a demo's sample delivery, and its model, unless they are there.", use_case=False)
    prepared.add_argument("use_case", nargs="?", help="name of the use case (default: every demo that needs no model written)")
    predict = add("predict", _predict, "Classify a text with the champion; a language model continues it, or answers it (sft).")
    predict.add_argument("text", help="the text")
    predict.add_argument("--max-new-tokens", type=_count, default=100, help="most tokens that a language model writes (default: 100)")
    add("rollback", _rollback, "Bring the previous champion back.")
    erase = add("erase", _erase, "Erase documents everywhere in the store, and name the models that had learned from them.")
    erase.add_argument("list", type=Path, help="text file with one document id (or group) a line")
    erase.add_argument("--by", choices=["id", "group"], default="id", help="what is listed: document ids, or groups (a patient, a client)")
    erase.add_argument("--reason", default="", help="kept with the record of the erasure")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number >= 1")
    return int(text)


def _load(parsed: argparse.Namespace):
    from fullft_assets.samples import prepare

    path = find_use_case(parsed.use_case, parsed.defs)
    prepare(path)
    use_case = load_use_case(path)
    _use_home(use_case.project_root)
    return use_case


def _use_home(project_root: Path) -> None:
    """Let Dagster live in `.home` of the project unless $DAGSTER_HOME says where."""
    if os.environ.get("DAGSTER_HOME"):
        return
    home = project_root / ".home"
    home.mkdir(exist_ok=True)
    settings, link = project_root / "dagster.yaml", home / "dagster.yaml"
    if settings.is_file() and not link.exists():
        link.symlink_to(settings)
    os.environ["DAGSTER_HOME"] = str(home)


def _run(parsed: argparse.Namespace) -> int:
    from fullft_assets.cli.run import run

    return run(_load(parsed))


def _check(parsed: argparse.Namespace) -> int:
    from fullft_assets.config.check import check_use_case
    from fullft_assets.samples import prepare

    path = find_use_case(parsed.use_case, parsed.defs)
    prepare(path)
    print(check_use_case(load_use_case(path)))
    return 0


def _prepare(parsed: argparse.Namespace) -> int:
    from fullft_assets.config.validation import find_use_cases
    from fullft_assets.samples import brings_model, prepare

    if parsed.use_case is not None:
        prepare(find_use_case(parsed.use_case, parsed.defs))
        return 0
    for path in find_use_cases(parsed.defs):
        if not brings_model(path):
            prepare(path)
    return 0


def _store(use_case):
    import dagster as dg

    from fullft_assets.resources import open_store

    with dg.DagsterInstance.get() as instance:
        return open_store(use_case, instance)


def _predict(parsed: argparse.Namespace) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from fullft_assets import release
    from fullft_assets.base_model import with_rights

    use_case = _load(parsed)
    store = _store(use_case)
    champion = release.read_champion(store, use_case.name)
    if champion is None:
        raise FullftError(f"{use_case.name} has no champion yet; `fullft run {use_case.name}` trains and judges one")
    checkpoint = store.load(champion.checkpoint)
    model = with_rights(store.folder(checkpoint) / "model", use_case.settings)
    if use_case.settings.examples.has_one_label:
        _classify(model, use_case.settings, checkpoint.metadata["labels"], parsed.text)
    elif use_case.settings.examples.task == "classification":
        _give_labels(model, use_case.settings, checkpoint.metadata["labels"], parsed.text)
    elif use_case.settings.examples.task == "token_classification":
        _find_spans(model, use_case.settings, parsed.text)
    else:
        _write(model, use_case.settings, parsed.text, parsed.max_new_tokens)
    return 0


def _classify(model, settings, labels: list[str], text: str) -> None:
    from fullft_assets.chunks import Tokenization
    from fullft_assets.models.inference import predict

    found = predict(model, Tokenization.load_saved(model, settings.chunks).windows([text])).probabilities[0]
    for label, probability in sorted(zip(labels, found, strict=True), key=lambda pair: -pair[1]):
        print(f"{probability:6.1%}  {label}")


def _give_labels(model, settings, labels: list[str], text: str) -> None:
    from fullft_assets.chunks import Tokenization
    from fullft_assets.models.inference import predict
    from fullft_assets.tasks.multi_label.judge import read_thresholds

    found = predict(model, Tokenization.load_saved(model, settings.chunks).windows([text])).probabilities[0]
    rows = sorted(zip(labels, found, read_thresholds(model), strict=True), key=lambda row: (row[1] < row[2], -row[1]))
    for label, probability, threshold in rows:
        print(f"{'yes' if probability >= threshold else 'no':<3} {probability:6.1%}  {label} (from {threshold:.1%} on)")


def _find_spans(model, settings, text: str) -> None:
    from fullft_assets.chunks import Tokenization
    from fullft_assets.tasks.token_classification.tagging import Reading, find_spans, load_finder

    finder, labels = load_finder(model)
    reading = Reading.of(Tokenization.load_saved(model, settings.chunks, settings.examples.task), [text])
    for start, end, label in find_spans(finder, reading)[0]:
        print(f"{start:>5} to {end:<5} {labels[label]}: {text[start:end]}")


def _write(model, settings, text: str, max_new_tokens: int) -> None:
    from fullft_assets.chunks import Tokenization
    from fullft_assets.models.inference import load_causal
    from fullft_assets.tasks.language.generation import Writer

    task = settings.examples.task
    writer = Writer(load_causal(model), Tokenization.load_saved(model, settings.chunks, task), max_new_tokens)
    if task == "sft":
        print(writer.write([{"role": "user", "content": text}]))
    else:
        print(text + writer.write(text))


def _rollback(parsed: argparse.Namespace) -> int:
    from fullft_assets import release

    use_case = _load(parsed)
    champion = release.rollback(_store(use_case), use_case.name)
    print(f"champion of {use_case.name} is again {champion.checkpoint} (score {champion.score:.3f})")
    return 0


def _erase(parsed: argparse.Namespace) -> int:
    from fullft_assets import erasure

    use_case = _load(parsed)
    if parsed.by == "group" and use_case.settings.examples.group is None:
        raise SettingsError(f"{use_case.yaml_path}: examples.group is not set, so no document has a group; set it, or list ids")
    listed = erasure.read_list(parsed.list)
    report = erasure.erase(_store(use_case), use_case.name, listed, by=parsed.by, reason=parsed.reason)
    print("\n".join(report.lines()))
    for line in report.missing[:_SHOWN_LINES]:
        print(f"{parsed.list}:{listed[line]}: `{line}`: no document has this {parsed.by}; mend the line and erase again", file=sys.stderr)
    if len(report.missing) > _SHOWN_LINES:
        print(f"{parsed.list}: {len(report.missing) - _SHOWN_LINES:,} more lines were not found", file=sys.stderr)
    return 1 if report.missing else 0
