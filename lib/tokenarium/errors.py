"""The one kind of error that a user can cause."""


class TokenariumError(Exception):
    """An expected mistake: its message is one clear line that names the thing and the mend.

    The command line prints the message without a traceback and exits with status 2.
    """
