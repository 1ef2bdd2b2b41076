"""Serve the chat page at `/`, and the API's page at `/docs`: static files that send requests only to this server."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse

STATIC_FOLDER = Path(__file__).parent / "static"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
PAGE_FILES = {"/": "index.html", "/docs": "docs.html"}
PAGE_FILES |= {
    f"/{name}": name
    for name in ("chat.js", "conversations.js", "messages.js", "streams.js", "chat.css", "docs.js", "docs.css")
}


def add_pages(app: FastAPI) -> None:
    def add_page(path: str, name: str) -> None:
        @app.get(path, include_in_schema=False)
        async def page() -> FileResponse:
            return FileResponse(STATIC_FOLDER / name, headers=PAGE_HEADERS)

    for path, name in PAGE_FILES.items():
        add_page(path, name)
