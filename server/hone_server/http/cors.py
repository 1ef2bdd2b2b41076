"""Allow cross-origin requests: web pages from other origins may call the API from a browser. Next: http/middleware.py.

The settings are vLLM's: any method, any header, no credentials (cookies). API keys are sent in a header, so they work.
"""

import json

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

ANY_ORIGIN = '["*"]'
# Headers of answers that scripts of other origins may read, in addition to those that browsers allow.
EXPOSED_HEADERS = ("retry-after", "x-request-id")


def add_cors_headers(app: ASGIApp, origins: list[str]) -> ASGIApp:
    """Return the application with CORS headers for these origins; '*' is any, and an empty list adds nothing.

    Browsers send preflight requests without the API key, so this must wrap the middleware that checks keys.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED_HEADERS
    )


def parse_origins(text: str) -> list[str]:
    """Return the origins of a JSON list. Raises ValueError with a sentence that names what was found."""
    example = """a JSON list of origins, such as '["https://app.example"]', '["*"]' (any) or '[]' (none)"""
    try:
        origins = json.loads(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {example}") from None
    if not isinstance(origins, list) or not all(isinstance(origin, str) for origin in origins):
        raise ValueError(f"{text!r} is not {example}")
    for origin in origins:
        scheme, separator, rest = origin.partition("://")
        if origin != "*" and (not (scheme and separator and rest) or "/" in rest):
            raise ValueError(f"{origin!r} is not an origin: it is a scheme, a host and a port, without a path")
    return origins
