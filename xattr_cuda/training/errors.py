"""The one exception for mistakes that the user can put right."""


class UserError(Exception):
    """What was given, what is wanted and what to do, in one line; the command line prints it without a traceback."""
