"""The error that the command line shows as one line."""


class InputError(ValueError):
    """Something that the user gave is wrong: the message names it and says what is accepted."""
