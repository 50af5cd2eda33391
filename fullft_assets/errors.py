"""What goes wrong for a reason that a user can mend. Each message is one line: the place, then the mend."""


class FullftError(Exception):
    """Base of every error that is the user's to mend; shown without a traceback."""


class SettingsError(FullftError):
    """The YAML, or a path that it names, is wrong."""


class DataError(FullftError):
    """A delivered file, row or label cannot be used."""


class StoreError(FullftError):
    """An artifact is missing, torn or does not match its digest."""


class GateError(FullftError):
    """A gate upstream is red: the work was refused, nothing was written."""


class WorkloadError(FullftError):
    """A launched workload ended without its manifest."""


class DivergenceError(FullftError):
    """Training went wrong in a way that more steps do not mend."""


class Interrupted(FullftError):
    """The workload was asked to stop; what it had is checkpointed."""
