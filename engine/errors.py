"""Everything that may end a run, as one tree; a bad row is data and never gets here.

PotstillError                 exit 1: the run cannot go on
├── UsageError                exit 2: what the user asked for cannot be done as written
│   ├── ConfigError           a key or value of the configuration
│   ├── TemplateError         a template or one of its slots
│   └── MissingError          a file, folder, model or library that is not there
├── DataError                 a file that is there and cannot be read: names `path:line`
├── DiskError                 the disk refused a write (full, read-only, gone)
├── EngineError               the teacher died or never started
│   └── EndpointError         an OpenAI-compatible endpoint that does not answer
│       └── LimitError        it takes no more requests for now, however often it is asked
├── TrainError                rows, template or loss that a student cannot learn from
├── ExportError               an exported student that does not answer as the student does
└── Interrupted               exit 130: the user stopped it; says how to resume

A message says what happened, where, and what to do next, in one sentence.
"""


class PotstillError(Exception):
    """The run cannot go on."""

    exit_code = 1


class UsageError(PotstillError):
    """What was asked for cannot be done as written."""

    exit_code = 2


class ConfigError(UsageError):
    """A key or value of the configuration is wrong."""


class TemplateError(UsageError):
    """A template or one of its slots is wrong."""


class MissingError(UsageError):
    """A file, folder, model or library is not there."""


class DataError(PotstillError):
    """A file is there and cannot be read."""


class DiskError(PotstillError):
    """The disk refused a write."""


class EngineError(PotstillError):
    """The teacher died or never started."""


class EndpointError(EngineError):
    """An OpenAI-compatible endpoint does not answer."""


class LimitError(EndpointError):
    """An OpenAI-compatible endpoint takes no more requests for now: a limit, a quota or a credit is spent."""


class TrainError(PotstillError):
    """The rows, the student's template or the loss are such that a student cannot learn from them."""


class ExportError(PotstillError):
    """An exported student does not answer as the student does."""


class Interrupted(PotstillError):  # noqa: N818 - not an error, the user's wish
    """The user stopped the run."""

    exit_code = 130
