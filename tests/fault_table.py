"""The page of faults that the launchers are tested with, made from the marks `fault` of the tests: `python -m
tests.fault_table` writes it.
"""

import ast
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reference" / "faults.md"
LAUNCHERS = ("local", "ssh", "kubernetes", "ecs", "sagemaker", "ray")
#: Faults by the name that a mark has, and what must hold.
FAULTS = {
    "the backend throttles, fails or does not answer": (
        "the run asks again, and goes on; after the limit it fails and the job goes on"
    ),
    "the answer to a submission is lost": "the job is found, and not started twice",
    "output is lost, late or cut": "it is read on where it stopped, each line once",
    "two runs launch the same": "one job; the other run attaches",
    "the run's process is killed": "the next run attaches to the job; of `local` nothing runs on",
    "a run is cancelled": "the job writes its checkpoint, and every process of it ends",
    "nobody follows a job any more": "it is ended in time, or its end is recorded",
    "the daemon restarts": "runs that are gone are marked, others go on",
    "spot capacity is taken away": "another attempt resumes from the checkpoint",
    "the machine or node is lost": "another attempt resumes from the checkpoint",
    "memory runs out": "a class of its own, which is not tried again",
    "the image, version or Python is another one": "one line that says which; nothing is launched",
    "S3 fails or damages a file": "it is tried again, or the newest whole checkpoint counts",
    "clock skew of hours": (
        "a job goes on, no output is lost, and no cost is negative; AWS refuses the signatures, which is one"
        " line"
    ),
    "a machine that was suspended comes back": "it writes no more: its successor has the lease",
}
#: Where a fault cannot happen.
IMPOSSIBLE = {
    ("local", "the backend throttles, fails or does not answer"): "no network between",
    ("local", "the answer to a submission is lost"): "no network between",
    ("local", "the image, version or Python is another one"): "the same installation",
}
Tests = dict[tuple[str, str], list[str]]


def marked() -> Tests:
    """Return the names of the tests, as `module::name`, by launcher and fault; tests are read, not imported.

    Raises:
        ValueError: a mark names a fault or a launcher that is not in the lists.
    """
    found: Tests = defaultdict(list)
    for path in sorted(TESTS.glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.fault(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            for decorator in getattr(node, "decorator_list", ()):
                if not (
                    isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault"
                ):
                    continue
                fault, *launchers = map(ast.literal_eval, decorator.args)
                if fault not in FAULTS or not set(launchers) <= set(LAUNCHERS):
                    raise ValueError(
                        f"{path.name}: {node.name}: fault {fault!r} of {launchers} is not one of"
                        " tests/fault_table.py"
                    )
                for launcher in launchers or LAUNCHERS:
                    found[launcher, fault].append(f"{path.stem}::{node.name}")
    return found


def page(tests: Tests) -> str:
    """Return the page: a table of the numbers of tests, then the tests."""
    lines = [
        "# Faults that the launchers are tested with",
        "",
        (
            "Made from the marks of the tests by `python -m tests.fault_table`. A number counts the tests of"
            " a cell; those that hold for every launcher,"
        ),
        "because the driver or the training is the same, count in each. `0` is a gap.",
        "",
        f"| fault | what must hold | {' | '.join(LAUNCHERS)} |",
        "|---|---|" + "---|" * len(LAUNCHERS),
    ]
    for fault, holds in FAULTS.items():
        cells = [
            IMPOSSIBLE.get((launcher, fault)) or str(len(tests[launcher, fault])) for launcher in LAUNCHERS
        ]
        lines.append(f"| {fault} | {holds} | {' | '.join(cells)} |")
    for fault in FAULTS:
        lines += ["", f"## {fault[0].upper()}{fault[1:]}", ""]
        names = dict.fromkeys(name for launcher in LAUNCHERS for name in tests[launcher, fault])
        lines += [f"- `tests/{name.replace('::', '.py::')}`" for name in names]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(marked()), encoding="utf-8")
