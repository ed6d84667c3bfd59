"""Byte streams of Warren in Python, for clients that share no code with it: packets as shared/contract/src/stream.rs has them, and the
frames that processes, copies and workspaces speak over them (shared/contract/src/frame.rs)."""

import asyncio
import hashlib
import json
import struct
import uuid

WINDOW = 512 * 1024  # How far a sender may be ahead of its reader, in bytes.
PIECE = 32 * 1024  # The most bytes of one packet.
RESEND = 1.0  # Seconds without an acknowledgement after which a packet is sent again.
STDIN, STDOUT, STDERR, RESIZE, SIGNAL, EXIT = range(6)


class Stream:
    """The opener's end. It listens when `listen` returns: only then is the other end asked to begin."""

    @classmethod
    async def listen(cls, client):
        self = cls()
        self.client, self.session = client, str(uuid.uuid4())
        self.there = f"warren.stream.{self.session}.acceptor"
        self.received, self.inbox, self.ended, self.why = 0, bytearray(), False, None
        self.sent, self.acknowledged, self.limit = 0, 0, WINDOW
        self.waiting, self.digests = [], (hashlib.sha256(), hashlib.sha256())
        self.changed = asyncio.Condition()
        self.subscription = await client.subscribe(f"warren.stream.{self.session}.opener", cb=self.packet)
        await client.flush()
        self.ticks = asyncio.create_task(self.tick())
        return self

    async def packet(self, message):
        kind, body = message.data[0], message.data[1:]
        if kind == 1:
            offset, data = struct.unpack(">Q", body[:8])[0], body[8:]
            if offset <= self.received < offset + len(data):
                data = data[self.received - offset :]
                self.received += len(data)
                self.digests[0].update(data)
                self.inbox += data
            await self.acknowledge(resend=offset > self.received)
        elif kind == 2:
            received, limit, resend = struct.unpack(">QQ?", body)
            self.acknowledged, self.limit = max(self.acknowledged, received), max(self.limit, limit)
            self.waiting = [(end, packet) for end, packet in self.waiting if end > self.acknowledged]
            if resend:
                await self.again()
        elif kind == 3:
            length = struct.unpack(">Q", body[:8])[0]
            if length == self.received and not self.ended:
                self.ended = True
                if body[8:] != self.digests[0].digest():
                    self.why = "the bytes received are not the bytes sent"
            await self.acknowledge(resend=not self.ended)
        elif kind == 4 and not self.ended:
            self.ended, self.why = True, body.decode()
        async with self.changed:
            self.changed.notify_all()

    async def acknowledge(self, resend=False):
        packet = struct.pack(">BQQ?", 2, self.received + self.ended, self.received + WINDOW, resend)
        await self.client.publish(self.there, packet)

    async def again(self):
        for _, packet in self.waiting:
            await self.client.publish(self.there, packet)

    async def tick(self):
        while True:
            before = self.acknowledged
            await asyncio.sleep(RESEND)
            # Said even if there is nothing new: whoever is silent for 30 seconds is taken for gone.
            await self.acknowledge()
            if self.acknowledged == before:
                await self.again()

    async def write(self, data):
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            async with self.changed:
                await self.changed.wait_for(lambda: self.sent + len(piece) <= self.limit or self.why)
            self.digests[1].update(piece)
            await self.send(struct.pack(">BQ", 1, self.sent) + piece, self.sent + len(piece))
            self.sent += len(piece)

    async def end(self):
        """No more bytes from here."""
        await self.send(struct.pack(">BQ", 3, self.sent) + self.digests[1].digest(), self.sent + 1)

    async def send(self, packet, end):
        self.waiting.append((end, packet))
        await self.client.publish(self.there, packet)

    async def read(self, count=None):
        """So many bytes; without a count all there are until the end."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.ended or (count and len(self.inbox) >= count))
        if self.why or (count and len(self.inbox) < count):
            raise EOFError(self.why or "the stream ended early")
        data = bytes(self.inbox[:count])
        del self.inbox[: len(data)]
        return data

    async def close(self):
        if not self.ended or self.waiting:
            await self.client.publish(self.there, b"\x04closed")
        self.ticks.cancel()
        await self.subscription.unsubscribe()

    # Frames: one byte of kind, four of length, so many bytes.

    async def frame(self, kind, data=b""):
        for at in range(0, max(len(data), 1), 64 * 1024):
            piece = data[at : at + 64 * 1024]
            await self.write(struct.pack(">BI", kind, len(piece)) + piece)

    async def next_frame(self):
        kind, length = struct.unpack(">BI", await self.read(5))
        return kind, await self.read(length) if length else b""

    async def until_exit(self):
        """What a process prints, and how it ends."""
        output, errors = b"", b""
        while True:
            kind, data = await self.next_frame()
            if kind == STDOUT:
                output += data
            elif kind == STDERR:
                errors += data
            elif kind == EXIT:
                return output, errors, json.loads(data)
