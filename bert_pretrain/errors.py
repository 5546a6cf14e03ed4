"""What a user can cause, or has to hear of in one line."""


class ConfigError(ValueError):
    """A mistake of the user: an option, a file, a directory.

    The message names the option or file, what was found, what is allowed and what to do. Entry points
    print it on one line, without a traceback, and end with status 2.
    """


class SharedError(ConfigError):
    """A mistake that all ranks raise at the same place: one says it for all. Any other is its rank's to say."""


class DivergedError(SharedError):
    """A run that cannot go on, because its gradients are not finite any more."""


def require(condition: bool, option: str, found: object, allowed: str) -> None:
    """Raise ``ConfigError`` in the common form unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{option} is {found!r}; allowed: {allowed}")
