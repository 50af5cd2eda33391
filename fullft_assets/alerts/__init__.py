"""alerts: what happened to a use case, sent once to the people who asked for it."""

from fullft_assets.alerts.sending import (
    CHANNELS,
    Alert,
    AlertError,
    Channel,
    Delivery,
    Meter,
    channel_problems,
    deliver,
    open_channels,
)
