"""Answer `GET /progress` on every loopback address, like trainers that are a step further each time.

trainers.py [PORT]
"""

import asyncio
import ipaddress
import json
import time
from datetime import UTC, datetime

ADDRESSES = ipaddress.ip_network("127.1.0.0/22")
PORT = 8080
STARTED = time.monotonic()


async def answer_requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            body = make_report()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def make_report() -> bytes:
    step = int(10 * (time.monotonic() - STARTED))
    progress = {
        "step": step,
        "totalSteps": 100_000,
        "percent": step // 1000,
        "loss": round(4 / (1 + step / 100), 4),
        "learningRate": 0.0002,
        "tokensPerSecond": 1234.5,
        "eta": 10_000 - step // 10,
        "updatedAt": datetime.now(UTC).isoformat(),
    }
    parameters = {"trainable": 1_000_000, "total": 100_000_000}
    return json.dumps({"stage": "Training", "progress": progress, "parameters": parameters}).encode()


async def main() -> None:
    hosts = [str(address) for address in ADDRESSES.hosts()]
    server = await asyncio.start_server(answer_requests, hosts, PORT)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
