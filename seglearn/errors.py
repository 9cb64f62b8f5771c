"""The one exception that means: what you gave cannot be used, and this sentence says what to do."""


class InputError(ValueError):
    """A wrong argument, file or setting. The message names it, what was found, and what to do about it."""
