"""Errors that a user can mend."""


class BadInput(ValueError):
    """A file, field or folder given from outside cannot be used.

    The message names the file or field, what was found, what was expected and, where it is not
    obvious, what to do. It is shown without a traceback and such a job is never retried.
    """
