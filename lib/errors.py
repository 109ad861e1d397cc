"""Errors that a user can cause or mend. Each message names the remedy."""


class StudyError(RuntimeError):
    """Something the reader can put right; the command line prints it without a traceback."""


class UsageError(StudyError):
    """A flag, name or value that the study does not know (exit status 2)."""


class AssetError(StudyError):
    """An archive with weights or data is missing, damaged, or cannot be fetched."""


class RecordError(StudyError):
    """A data file holds a record that cannot be used; names the file and the line."""


class BackboneError(StudyError):
    """A model is unknown, does not fit, or lacks the requested part."""


class EditorError(StudyError):
    """An editor is unknown, does not support a backbone, or has no room for another edit."""


class TakenError(StudyError):
    """Another process works on it, and the caller did not want to wait."""


class StoreError(StudyError):
    """The run store cannot be written or read (full disk, permissions, foreign files)."""
