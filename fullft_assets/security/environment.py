"""Which variables of the environment another process gets."""

import os
import re

#: Variables of Dagster's database, of the UI's login and of channels of alerts.
_OF_CONTROL_PLANE = re.compile(r"DAGSTER_(?!HOME$|PIPES_)|PG[A-Z]+$|FULLFT_(LOGIN|UI)_|RAY_AUTH_|.*ALERT")
#: Variables of accounts, passwords and keys.
_OF_ACCOUNTS = re.compile(
    r"(AWS|AZURE|GOOGLE|SSH)_|.*(PASSW|SECRET|TOKEN|CREDENTIAL|KEY|_URL)", re.IGNORECASE
)


def environment_for_others(*, with_accounts: bool) -> dict[str, str]:
    """Return the variables of this process for one that may run code of a model or of another package, or
    reads a delivered file: none of the control plane, and none of accounts unless they are asked for.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not _OF_CONTROL_PLANE.match(name) and (with_accounts or not _OF_ACCOUNTS.match(name))
    }
