"""Errors a person is meant to read: one sentence that says what is wrong and what to do."""


class MlcrtError(Exception):
    """Something failed for a reason the user can act on; the CLI prints it and exits with `exit_code`."""

    exit_code = 1


class UsageError(MlcrtError):
    """The request itself was wrong (unknown scheme, target, option value)."""

    exit_code = 2
