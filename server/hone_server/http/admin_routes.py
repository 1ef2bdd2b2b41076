"""Load and unload adapters while the server runs: vLLM's two routes, for clients with the admin token."""

import hmac
import logging
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from hone_api.layout import ADMIN_HEADER
from hone_api.reasons import ARTIFACT_MISSING, ENGINE_FAILED, OUT_OF_MEMORY, HoneError
from pydantic import AfterValidator, BaseModel, Field
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hone_server.http.routes import add_error_handlers
from hone_server.model_registry import ModelRegistry
from hone_server.protocol.bodies import BodyRoute
from hone_server.protocol.errors import ApiError
from hone_server.vllm.middleware import LOAD_PATH, UNLOAD_PATH

log = logging.getLogger("hone_server")

ADMIN_PATHS = frozenset({LOAD_PATH, UNLOAD_PATH})
# Linux's limit, in bytes.
MAX_PATH_BYTES = 4095
STATUS_BY_REASON = {ARTIFACT_MISSING: 404, OUT_OF_MEMORY: 503, ENGINE_FAILED: 500}  # another reason: 400


def _refuse_nul(path: str) -> str:
    if "\0" in path:
        raise ValueError("a path can't have the character NUL; leave it out")
    return path


class LoadAdapter(BaseModel):
    lora_name: str = Field(min_length=1)
    lora_path: Annotated[str, Field(min_length=1, max_length=MAX_PATH_BYTES), AfterValidator(_refuse_nul)]
    load_inplace: bool = False


class UnloadAdapter(BaseModel):
    lora_name: str = Field(min_length=1)


class AdminAuthMiddleware:
    """Passes requests with the token to the admin routes; for all others these routes don't exist.

    The file is read at each such request, because it may be created after the start, and change.
    """

    def __init__(self, app: ASGIApp, admin: ASGIApp, token_file: Path) -> None:
        self._app = app
        self._admin = admin
        self._token_file = token_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        inside = scope["type"] == "http" and scope["path"] in ADMIN_PATHS and self._has_token(Headers(scope=scope))
        await (self._admin if inside else self._app)(scope, receive, send)

    def _has_token(self, headers: Headers) -> bool:
        try:
            token = self._token_file.read_bytes().strip()
        except OSError as error:
            log.warning("admin route asked for, and the token can't be read: %s", error)
            return False
        given = headers.get(ADMIN_HEADER, "").encode("latin-1", "replace").strip()
        return bool(token) and hmac.compare_digest(given, token)


def make_admin_app(registry: ModelRegistry) -> FastAPI:
    """Return a separate application, so that the clients' one and its OpenAPI document don't have these routes."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.route_class = BodyRoute
    add_error_handlers(app)

    @app.post(LOAD_PATH)
    async def load(body: LoadAdapter) -> Response:
        await registry.load_adapter(body.lora_name, body.lora_path, replaces=body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter {body.lora_name!r} added successfully.")

    @app.post(UNLOAD_PATH)
    async def unload(body: UnloadAdapter) -> Response:
        await registry.unload_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter {body.lora_name!r} removed successfully.")

    @app.exception_handler(OSError)
    async def handle_os_error(_: Request, error: OSError) -> Response:
        refused = ApiError(
            400, f"lora_path: {error.strerror}; name a folder that the engine can read", param="lora_path"
        )
        return JSONResponse(refused.make_body(), refused.status)

    @app.exception_handler(HoneError)
    async def handle_hone_error(_: Request, error: HoneError) -> Response:
        refused = ApiError(STATUS_BY_REASON.get(error.reason, 400), error.format_message(), code=error.reason.name)
        return JSONResponse(refused.make_body(), refused.status)

    return app
