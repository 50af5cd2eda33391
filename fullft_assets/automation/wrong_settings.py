"""A use case whose YAML is wrong: one asset, with a failing check that says what to fix, so that the others
load.
"""

from pathlib import Path

import dagster as dg

from fullft_assets.checking.project import Place, fitting_name, name_at
from fullft_assets.store import digest

CHECK = "defs_yaml_is_right"


def build_wrong(place: Place, defs_folder: Path, problem: str) -> dg.Definitions:
    """Return an asset for a use case whose YAML is wrong, its check, and the sensor that reports the check.

    Args:
        place: where the use case is written.
        defs_folder: the folder with all use cases.
        problem: one line for each mistake.
    """
    # Not by the name of the use case: that may be wrong as well, and the same as another one's.
    folders = [fitting_name(folder) for folder in place.path.parent.relative_to(defs_folder).parts]
    parts = [*folders, "defs_yaml" + (f"_{place.document + 1}" if place.document else "")]
    key = dg.AssetKey(parts)
    shown = f"Not loaded, because its YAML is wrong:\n\n{problem}"
    asset = dg.AssetSpec(key, group_name=name_at(place), kinds={"yaml"}, description=shown)

    @dg.asset_check(asset=key, name=CHECK, description="The YAML of the use case has no mistake.")
    def is_right() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, description=problem)

    # A run would need somebody who starts it.
    @dg.sensor(
        name="_".join([*parts, "report"]),
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports what is wrong with the YAML of the use case.",
    )
    def report(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        failed = dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=CHECK,
            passed=False,
            severity=dg.AssetCheckSeverity.ERROR,
            description=problem,
            metadata={},
        )
        is_reported = context.cursor == digest(problem)
        return dg.SensorResult(
            skip_reason=problem, asset_events=[] if is_reported else [failed], cursor=digest(problem)
        )

    return dg.Definitions(assets=[asset], asset_checks=[is_right], sensors=[report])
