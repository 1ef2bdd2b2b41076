"""What must be installed to train and to serve on this machine."""

import importlib.util

from hone.errors import ClientError

TRAINER = ("trainer", "torch", "transformers", "trl", "peft", "datasets")
ENGINE = ("server", "torch", "transformers", "peft", "fastapi", "uvicorn")


def require_modules(extra: str, *modules: str) -> None:
    """Raise ClientError, with what to install, unless all modules of an extra are installed. Imports none of them."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ClientError(
            f"this needs Hone's extra '{extra}', and {', '.join(missing)} can't be found",
            f"Install it in a checkout of Hone: pip install '.[{extra}]'",
        )
