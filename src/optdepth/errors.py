"""What a user meets when something is wrong: what it is, the value, and the fix, in one line."""


class InputError(ValueError):
    """The caller's input cannot be used. The message names the value and says what to do instead.

    The command line prints it as one line and exits with status 2.

    Example:
        >>> od.snell(fit, price=-1.0)
        Traceback (most recent call last):
        ...
        optdepth.errors.InputError: price is -1; it is loss per unit of cost: finite and >= 0
    """


class FileError(InputError, OSError):
    """The system refuses a file or folder: no space is left, or no permission given. What was there before is whole."""
