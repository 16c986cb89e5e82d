"""The one error type that is meant for people: what is wrong, the rule, and the remedy."""


class VitcoreError(Exception):
    """A bad input (file, flag, image, checkpoint, plugin, environment).

    Its message is one line that names the thing, the rule it breaks and the remedy. Command lines print
    the message alone and leave with exit code 2; `VITCORE_DEBUG=1` shows the traceback as well.
    """


def nearest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """Return " (did you mean 'x'?)" for the closest of `known`, or "" when nothing is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
