"""What can go wrong, by who can mend it.

CommonweightsError                 everything a person may be shown: one line that says what to do
├── UsageError                     exit code 2: the command line, the config or the ticket is wrong
│   └── ConfigError                a key of the TOML file
├── VerificationError              exit code 3: the log, a blob or the state is not what was signed
├── DataError                      a dataset, a shard or a manifest cannot be used
├── UnreachableError               nobody answered in time; retrying later may help
└── Refused                        the other side, or we, said no; the text is the reason
    └── PayloadError               a payload that does not decode: truncated, garbage, out of bounds
"""

from __future__ import annotations


class CommonweightsError(Exception):
    """Base of all errors whose text is meant for a person. Exit code 1."""

    exit_code = 1


class UsageError(CommonweightsError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class VerificationError(CommonweightsError):
    exit_code = 3


class DataError(CommonweightsError):
    pass


class UnreachableError(CommonweightsError):
    pass


class Refused(CommonweightsError):
    pass


class PayloadError(Refused):
    pass
