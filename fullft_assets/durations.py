"""Times as a person reads them."""


def duration(seconds: float) -> str:
    """Return a time in its two largest units."""
    if 0 < seconds < 1:
        return "< 1 s"
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {seconds_left} s"
        if minutes
        else f"{seconds_left} s"
    )
