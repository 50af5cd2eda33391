"""alerts: what happened to a use case, sent once to the people who asked for it."""

from fullft_assets.alerts.alert import Alert
from fullft_assets.alerts.registered import CHANNELS, AlertError, Channel, channel_problems, open_channels
from fullft_assets.alerts.sending import Delivery, deliver
