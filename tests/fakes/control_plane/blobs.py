"""An HTTP server for payloads that are too large for a message."""

from __future__ import annotations

import hashlib

from aiohttp import web

MAX_BYTES = 1 << 30  # the client sends larger ones in parts, which this server does not accept


class BlobStore:
    """Takes a blob by PUT and gives it back by GET, each under its id."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.url = ""
        self._runner: web.AppRunner | None = None

    def url_of(self, blob_id: str) -> str:
        """Return the address of a blob, for both PUT and GET."""
        return f"{self.url}/{blob_id}"

    async def start(self) -> None:
        """Serve on a free port of this machine."""
        application = web.Application(client_max_size=MAX_BYTES)
        application.router.add_put("/{blob_id}", self._put)
        application.router.add_get("/{blob_id}", self._get)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, shutdown_timeout=0.1)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _put(self, request: web.Request) -> web.Response:
        content = await request.read()
        self.contents[request.match_info["blob_id"]] = content
        return web.Response(headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    async def _get(self, request: web.Request) -> web.Response:
        content = self.contents.get(request.match_info["blob_id"])
        if content is None:
            raise web.HTTPNotFound
        return web.Response(body=content)
