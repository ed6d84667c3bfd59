"""Does the main job with an independent NATS client and nothing else: no Warren code is used here."""

import asyncio
import json
import sys

import nats


async def main(url: str) -> None:
    client = await nats.connect(url)

    async def ask(subject: str, body: dict, timeout: float = 120.0, headers: dict | None = None) -> dict:
        reply = await client.request(subject, json.dumps(body).encode(), timeout=timeout, headers=headers)
        answer = json.loads(reply.data)
        if reply.headers and "Nats-Service-Error-Code" in reply.headers:
            answer["number"] = reply.headers["Nats-Service-Error-Code"]
        return answer

    # Every service is visible to `nats micro ls|info|stats`.
    inbox = client.new_inbox()
    pings = await client.subscribe(inbox)
    await client.publish("$SRV.PING", b"", reply=inbox)
    seen = set()
    while not {"image-service", "vm-lifecycle", "workspace-service", "host-agent"} <= seen:
        seen.add(json.loads((await pings.next_msg(timeout=10)).data)["name"])
    info = await ask("$SRV.INFO.vm-lifecycle", {})
    create = next(e for e in info["endpoints"] if e["subject"] == "warren.vm.create")
    request = json.loads(create["metadata"]["schema.request"])
    assert {"name", "image", "cpus", "memory", "disk", "wait"} <= set(request["properties"]), request
    stats = await ask("$SRV.STATS.image-service", {})
    assert any(e["subject"] == "warren.image.pull" for e in stats["endpoints"]), stats

    key = {"Warren-Request-Id": "independent-1"}
    body = {"name": "py", "image": "bb", "memory": "128M", "disk": "128M", "wait": True, "timeout_ms": 100_000}
    created = await ask("warren.vm.create", body, headers=key)
    assert created.get("state") == "succeeded", created
    again = await ask("warren.vm.create", body, headers=key)
    assert again["id"] == created["id"], "the same key is the same operation"
    other = await ask("warren.vm.create", {**body, "name": "py2"}, headers=key)
    assert other["error"]["code"] == "invalid_argument", other
    refused = await ask("warren.vm.create", {**body, "colour": "red"})
    assert refused["error"]["code"] == "invalid_argument" and refused["number"] == "400", refused

    vm = await ask("warren.vm.get", {"vm": "py"})
    assert vm["state"] == "running" and vm["fqdn"].startswith("py."), vm
    ran = await ask("warren.workspace.exec", {"vm": "py", "command": {"argv": ["sh", "-c", "cat; exit 4"]}, "stdin": "hi"})
    assert (ran["exit_code"], ran["stdout"]) == (4, "hi"), ran
    listed = await ask("warren.operation.list", {"kind": "vm.create", "limit": 1})
    assert listed["operations"][0]["steps"], listed
    gone = await ask("warren.vm.delete", {"vm": "py", "wait": True})
    assert gone.get("state") == "succeeded", gone

    # What happened can be replayed from JetStream.
    events = await client.jetstream().subscribe(f"warren.event.vm.{vm['id']}.>", ordered_consumer=True)
    told = []
    while "deleted" not in told:
        told.append((await events.next_msg(timeout=10)).subject.rsplit(".", 1)[1])
    assert told[0] == "reserved" and "running" in told, told
    await client.close()
    print("independent client: all well")


asyncio.run(main(sys.argv[1]))
