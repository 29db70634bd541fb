"""The exceptions that fewstep raises on purpose.

FewstepError
├── ConfigurationError      a value that the caller chose is not valid
│   ├── ScheduleError       a solver schedule that cannot be built, read or compiled
│   └── ModelError          a model directory that cannot be used
├── DataError               a data set, reference or image folder that cannot be used
├── StorageError            tables that cannot be read or written
│   ├── DamagedFileError    a Parquet file that is torn or not Parquet at all
│   └── LeaseError          another process holds the study directory
├── TrackingError           the tracking server refused or did not answer
└── EvaluationError         a candidate could not be evaluated

Every message says what was wrong, with which value, and what to do. The command line prints it on
one line and exits with 2. All of them take positional arguments only, so they survive pickling.
"""


class FewstepError(Exception):
    """Base of everything fewstep raises on purpose."""


class ConfigurationError(FewstepError):
    """A value that the caller chose is not valid."""


class ScheduleError(ConfigurationError):
    """A solver schedule that cannot be built, read or compiled."""


class ModelError(ConfigurationError):
    """A model directory that cannot be used."""


class DataError(FewstepError):
    """A data set, reference or image folder that cannot be used."""


class StorageError(FewstepError):
    """Tables that cannot be read or written."""


class DamagedFileError(StorageError):
    """A Parquet file that is torn or not Parquet at all."""


class LeaseError(StorageError):
    """Another process holds the study directory."""


class TrackingError(FewstepError):
    """The tracking server refused or did not answer."""


class EvaluationError(FewstepError):
    """A candidate could not be evaluated."""
