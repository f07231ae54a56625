"""The variables that a deployment gives to the worker."""

import argparse

BUCKET = ("R2_ENDPOINT", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "R2_BUCKET_NAME")


def setting(text: str) -> tuple[str, str]:
    """Returns the name and the value of an argument `NAME=VALUE`.

    Raises:
        argparse.ArgumentTypeError: the text has no name or no `=`.
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("NAME=VALUE")
    return name, value
