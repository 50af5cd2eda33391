"""automation: jobs, sensors and schedules. They read signals and carry decisions out; what to do is decided
elsewhere.
"""

from fullft_assets.automation.alerts import build_alert_sensor
from fullft_assets.automation.cleaning import idle_from_now, require_idle
from fullft_assets.automation.decision import decide_and_record
from fullft_assets.automation.deliveries import find_due
from fullft_assets.automation.jobs import IN_ORDER_TAG, INGEST, MODEL, MONITOR, build_jobs
from fullft_assets.automation.ledger import decisions_asset
from fullft_assets.automation.schedules import build_schedules
from fullft_assets.automation.sensors import build_live_sensor, build_sensors
from fullft_assets.automation.wrong_settings import build_wrong
