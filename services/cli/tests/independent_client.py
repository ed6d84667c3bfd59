"""Does the main job with an independent NATS client and nothing else: no Warren code is used here."""

import asyncio
import io
import json
import sys
import tarfile

import nats
from warren_stream import STDIN, STDOUT, Stream


async def ways_in(client, ask, git_url: str) -> None:
    """Every way into a VM: a process, files, a port, and workspaces with their changes."""

    async def open_stream(kind: dict) -> Stream:
        stream = await Stream.listen(client)
        opened = await ask("warren.workspace.open", {"vm": "py", "session": stream.session, "kind": kind})
        assert opened == {}, opened
        return stream

    async def run(*argv: str) -> str:
        ran = await ask("warren.workspace.exec", {"vm": "py", "command": {"argv": argv}})
        assert ran["exit_code"] == 0, ran
        return ran["stdout"]

    # A process: its input, its output and its end.
    stream = await open_stream({"exec": {"argv": ["sh", "-c", "wc -c; echo bad >&2; exit 7"]}})
    await stream.frame(STDIN, b"x" * 1_000_000)
    await stream.frame(STDIN)
    output, errors, end = await stream.until_exit()
    assert (output.strip(), errors, end["code"]) == (b"1000000", b"bad\n", 7), (output, errors, end)
    await stream.close()

    # Files: a tar archive in, and out again.
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, text in (("app/main.py", b"print('hello')\n"), ("app/README", b"An app.\n")):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
    stream = await open_stream({"unpack": {"path": "/srv", "contents": True, "owner": "0:0"}})
    await stream.frame(STDIN, archive.getvalue())
    await stream.frame(STDIN)
    assert (await stream.until_exit())[2]["code"] == 0
    await stream.close()
    stream = await open_stream({"pack": {"path": "/srv/app"}})
    packed, _, end = await stream.until_exit()
    assert end["code"] == 0, end
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert tar.extractfile("app/main.py").read() == b"print('hello')\n"
    await stream.close()

    # A port of the VM: bytes as they are.
    await run("sh", "-c", "setsid nc -ll -p 7 -e cat >/dev/null 2>&1 & until netstat -ltn | grep -q ':7 '; do sleep 0.1; done")
    stream = await open_stream({"tcp": {"port": 7}})
    await stream.write(b"echo?")
    assert await stream.read(5) == b"echo?"
    await stream.close()

    async def export(path: str) -> tuple[dict, dict]:
        """What changed in a workspace: the list, and the changed files."""
        stream = await Stream.listen(client)
        operation = await ask("warren.workspace.export", {"vm": "py", "path": path, "session": stream.session})
        assert "id" in operation, operation
        archive = b""
        while not whole(archive):
            kind, data = await stream.next_frame()
            assert kind == STDOUT, (kind, data)
            archive += data
        # All of it is here: only now the export counts.
        await stream.frame(STDIN)
        assert (await stream.until_exit())[2]["code"] == 0
        await stream.close()
        ended = await ask("warren.operation.wait", {"id": operation["id"]})
        assert ended["state"] == "succeeded", ended
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            files = {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}
        return json.loads(files.pop("changes.json")), files

    # A workspace out of an object store, its changes, and the same files again.
    store = await client.jetstream().create_object_store("files")
    await store.put("app.tar", archive.getvalue())
    body = {"vm": "py", "path": "/srv/object", "source": {"object": "files/app.tar"}, "wait": True}
    prepared = await ask("warren.workspace.prepare", body)
    assert prepared.get("state") == "succeeded", prepared
    assert prepared["result"]["workspace"]["about"]["origin"] == "object files/app.tar", prepared
    await run("sh", "-c", "cd /srv/object/app && echo more >> README && rm main.py && echo new > new.txt")
    changes, files = await export("/srv/object")
    paths = {change["path"]: ("before" in change, "after" in change) for change in changes["changes"]}
    assert paths == {"app/README": (True, True), "app/main.py": (True, False), "app/new.txt": (False, True)}, paths
    assert files == {"tree/app/README": b"An app.\nmore\n", "tree/app/new.txt": b"new\n"}, files
    # What was exported may be replaced.
    again = await ask("warren.workspace.prepare", body)
    assert again.get("state") == "succeeded", again
    assert await run("cat", "/srv/object/app/README") == "An app.\n"

    # A workspace out of a git repository that workspace-service reaches; the VM has no git.
    source = {"git": {"url": git_url, "ref": "main", "history": {"depth": 1}}}
    body = {"vm": "py", "path": "/srv/git", "source": source, "wait": True}
    prepared = await ask("warren.workspace.prepare", body)
    assert prepared.get("state") == "succeeded", prepared
    about = prepared["result"]["workspace"]["about"]
    assert (about["branch"], about["upstream"]) == ("main", "origin/main"), about
    assert await run("cat", "/srv/git/hello.txt", "/srv/git/.git/HEAD") == "hello\nref: refs/heads/main\n"
    again = await ask("warren.workspace.prepare", body)
    assert again["result"]["summary"]["unchanged"], again
    changes, files = await export("/srv/git")
    assert (changes["changes"], files) == ([], {}), (changes, files)
    refused = await ask("warren.workspace.prepare", {**body, "source": {"git": {"url": "https://ann:secret@git.example/x"}}})
    assert refused["error"]["code"] == "invalid_argument" and "secret" not in json.dumps(refused), refused

    listed = await ask("warren.workspace.list", {"vm": "py"})
    assert [workspace["path"] for workspace in listed["workspaces"]] == ["/srv/object", "/srv/git"], listed
    removed = await ask("warren.workspace.remove", {"vm": "py", "path": "/srv/object", "wait": True})
    assert removed.get("state") == "succeeded", removed
    assert (await ask("warren.workspace.get", {"vm": "py"}))["path"] == "/srv/git"


def whole(archive: bytes) -> bool:
    """Whether a tar archive has come to its end, a block of zeros after an entry."""
    at = 0
    while len(archive) >= at + 512:
        header = archive[at : at + 512]
        if header == bytes(512):
            return True
        at += 512 + -(-int(header[124:135].strip(b"\0 ") or b"0", 8) // 512) * 512
    return False


async def main(url: str, git_url: str) -> None:
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
    await ways_in(client, ask, git_url)
    gone = await ask("warren.vm.delete", {"vm": "py", "wait": True})
    assert gone.get("state") == "succeeded", gone
    for _ in range(100):
        if not (await ask("warren.workspace.list", {}))["workspaces"]:
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError("a VM is gone and its workspace is not")

    # What happened can be replayed from JetStream.
    events = await client.jetstream().subscribe(f"warren.event.vm.{vm['id']}.>", ordered_consumer=True)
    told = []
    while "deleted" not in told:
        told.append((await events.next_msg(timeout=10)).subject.rsplit(".", 1)[1])
    assert told[0] == "reserved" and "running" in told, told
    await client.close()
    print("independent client: all well")


asyncio.run(main(sys.argv[1], sys.argv[2]))
