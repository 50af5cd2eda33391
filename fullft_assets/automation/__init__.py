"""automation: jobs, sensors and schedules. They read signals and carry decisions out; what to do is decided
elsewhere.
"""

from fullft_assets.automation.alerts import build_alert_sensor
from fullft_assets.automation.decision import decide_and_record, decisions_asset
from fullft_assets.automation.jobs import (
    IN_ORDER_TAG,
    INGEST,
    MODEL,
    MONITOR,
    build_jobs,
    idle_from_now,
    require_idle,
)
from fullft_assets.automation.runs import find_due
from fullft_assets.automation.sensors import build_live_sensor, build_schedules, build_sensors
