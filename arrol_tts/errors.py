"""Everything that ARRoL raises by itself: one tree, so that an app can catch it all or one kind.

::

    ArrolError
    ├── InputError            (ValueError)    what was passed in cannot be used; the message says what to change
    │   ├── OptionError       (TypeError)     there is no such option
    │   ├── WrongTypeError    (TypeError)     an answer, a text or a field of a trace is of another type
    │   ├── VoteError                         traces that cannot be voted on
    │   ├── RecordError                       a file or folder of traces that cannot be read or written
    │   │   ├── MissingFileError              (FileNotFoundError) there is none
    │   │   └── NotAFolderError               (NotADirectoryError) there is a file in its place
    │   ├── HeadError                         a quality head that is broken, or made for another model
    │   └── ConfigError, CollectError, ...    of training and evaluation, beside what raises them
    ├── EngineError           (RuntimeError)  a language model's engine that is gone, busy or not supported
    │   ├── ServerError                       no server is left that answers, or one cannot be understood
    │   └── EngineMismatchError, ...          of training
    ├── StoreBusyError        (RuntimeError)  another writer has the trace store open
    └── MissingPackageError   (ImportError)   an optional package is not installed

Each is also the built-in error in brackets, for code that catches those. Input errors come before anything is
generated or written.
"""

from __future__ import annotations


class ArrolError(Exception):
    """The base of all."""


class InputError(ArrolError, ValueError):
    """What was passed in cannot be used; the message says what to change."""


class OptionError(InputError, TypeError):
    """A call was given an option that it does not have."""


class WrongTypeError(InputError, TypeError):
    """A value is of another type than the one that it must have."""


class VoteError(InputError):
    """Traces that cannot be voted on: none, of several questions, or without a signal that the method needs."""


class RecordError(InputError):
    """A file or folder of recorded traces that cannot be read or written."""


class MissingFileError(RecordError, FileNotFoundError):
    """There is no such file or folder."""


class NotAFolderError(RecordError, NotADirectoryError):
    """There is a file where a folder is wanted."""


class StoreBusyError(ArrolError, RuntimeError):
    """Another writer has the trace store open."""


class HeadError(InputError):
    """A quality head that cannot be used: broken files, or made for another model."""


class EngineError(ArrolError, RuntimeError):
    """A language model's engine that is gone, busy, or not supported here."""


class ServerError(EngineError):
    """No server is left that answers, or one answers what cannot be understood."""


class MissingPackageError(ArrolError, ImportError):
    """An optional package is not installed; the message says how to install it."""
