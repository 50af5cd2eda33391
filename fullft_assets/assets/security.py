"""The asset `security_audit`, one for all use cases: what the platform is open to, each morning."""

from pathlib import Path

import dagster as dg

from fullft_assets import security
from fullft_assets.assets.graph import markdown_table
from fullft_assets.checking.project import Place, find_project_root, find_use_cases
from fullft_assets.checking.validation import load_use_case
from fullft_assets.demos import is_dormant
from fullft_assets.errors import SettingsError
from fullft_assets.resources import AccountResource, open_store
from fullft_assets.resources.store import default_store
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store

_KEY = dg.AssetKey("security_audit")
_ACCOUNT = "security_audit_account"
_CHECK = "nothing_closes_the_release"
_CRON = "41 5 * * *"
_DESCRIPTION = "What the platform is open to: rights, secrets, licences, known vulnerabilities, the record."


def audit_all(
    defs: Path, instance: dg.DagsterInstance
) -> tuple[list[security.Finding], dict[str, security.Record]]:
    """Audit a Dagster home, the project around a folder of use cases, and each store of theirs; return the
    findings, errors first, and the records of the stores by their URLs.
    """
    home = Path(instance.root_directory)
    standard = default_store(home)
    by_store: dict[str, tuple[Store, list[UseCase]]] = {standard.url: (standard, [])}
    for use_case in filter(None, map(_loaded, find_use_cases(defs))):
        store = open_store(use_case, instance)
        by_store.setdefault(store.url, (store, []))[1].append(use_case)
    root = find_project_root(defs / "defs.yaml")
    findings = [
        finding
        for store, use_cases in by_store.values()
        for finding in security.audit_and_record(root, home, store, use_cases)
    ]
    records = {url: security.read_record(store) for url, (store, _) in by_store.items()}
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.severity != "error"), records


def _loaded(source: Place) -> UseCase | None:
    try:
        return None if is_dormant(source.path) else load_use_case(*source)
    except SettingsError:
        return None  # an asset of its own says so


def build(defs: Path) -> dg.Definitions:
    """Return the asset, its check, its job and its schedule.

    Args:
        defs: folder with the use cases.
    """

    @dg.asset(
        key=_KEY,
        description=_DESCRIPTION,
        group_name="security",
        kinds={"security"},
        code_version="1",
        required_resource_keys={_ACCOUNT},
        check_specs=[
            dg.AssetCheckSpec(
                _CHECK, asset=_KEY, description="No finding of severity error, which keeps every champion."
            )
        ],
    )
    def security_audit(context: dg.AssetExecutionContext):
        findings, records = audit_all(defs, context.instance)
        if findings:
            context.log.warning(f"{len(findings)} findings; `fullft audit` names the files")
        rows = [{"id": finding.id, "severity": finding.severity, "fix": finding.fix} for finding in findings]
        num_errors = sum(finding.severity == "error" for finding in findings)
        yield dg.MaterializeResult(
            metadata={
                "num_errors": num_errors,
                "num_findings": len(findings),
                "num_entries": sum(len(record.entries) for record in records.values()),
                **({"findings": dg.MetadataValue.md(markdown_table(rows))} if rows else {}),
            },
            check_results=[dg.AssetCheckResult(passed=not num_errors, check_name=_CHECK)],
        )

    job = dg.define_asset_job("audit_security", dg.AssetSelection.assets(_KEY), description=_DESCRIPTION)
    schedule = dg.ScheduleDefinition(
        name="security_audit_schedule",
        job=job,
        cron_schedule=_CRON,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Audits once a day.",
    )
    account = AccountResource(lambda _: None, "The account whose stores are audited.")
    return dg.Definitions(
        assets=[security_audit], jobs=[job], schedules=[schedule], resources={_ACCOUNT: account}
    )
