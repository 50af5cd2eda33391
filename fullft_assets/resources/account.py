"""The resource `aws` of a code location: whatever Dagster injects for a use case follows it, where there is
one.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg

from fullft_assets.aws import account_of

AWS = "aws"


class AccountResource(dg.ResourceDefinition):
    """A resource whose users speak to AWS in the account of the resource `aws`, if the code location has one.

    Args:
        open_value: returns the value of this resource.
    """

    def __init__(self, open_value: Callable[[dg.InitResourceContext], Any], description: str):
        def value(init: dg.InitResourceContext) -> Any:
            aws = init.resources.original_resource_dict.get(AWS)
            return open_value(init) if aws is None else _in_account(aws, open_value, init)

        super().__init__(value, description=description)

    def get_required_resource_keys(
        self, resource_defs: Mapping[str, dg.ResourceDefinition]
    ) -> frozenset[str]:
        """Return the key of `aws` where it is one of the definitions."""
        # A key that is required in any case would have to be in every project's definitions. Dagster asks so
        # for resources that are nested in others; tests/test_private_dagster.py names the release.
        return frozenset({AWS} & resource_defs.keys())


def _in_account(
    aws: Any, open_value: Callable[[dg.InitResourceContext], Any], init: dg.InitResourceContext
) -> Iterator[Any]:
    # The logs of steps are where the instance says: its client is made before, from the environment.
    _ = init.instance and init.instance.compute_log_manager
    with account_of(aws):
        yield open_value(init)
