//! The ways into a VM beside exec: files copied in and out, its ports on this machine, and plain ssh with all that stands on it.

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use common::{busybox_layout, lab_or_skip, refused};
use testkit::lab::{Lab, LabOptions};

const BOUND: Duration = Duration::from_secs(60);

async fn guest(lab: &Lab, command: &str) -> String {
    lab.must(&["exec", "web", "--", "sh", "-c", command]).await.trim().to_owned()
}

/// Runs a command with the lab's environment.
fn run(lab: &Lab, program: &str, arguments: &[&str], stdin: &[u8]) -> std::process::Output {
    let mut child = lab
        .outside(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn files_ports_and_plain_ssh_lead_into_a_vm() {
    let port = free_port();
    let env = [("WARREN_STREAM_ADDRESS".to_owned(), format!("127.0.0.1:{port}"))].into();
    let Some(mut lab) = lab_or_skip(LabOptions { env, ..LabOptions::default() }).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    lab.must(&["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "256M"]).await;
    files(&lab).await;
    lanes(&lab).await;
    ports(&lab).await;
    roads(&lab, port).await;
    endless(&lab).await;
    jobs(&mut lab).await;
    assert_eq!(connections(port), 0, "the host's new address is out of reach, so the bus carried it all");
    plain_ssh(&lab).await;
    agent_killed(&lab).await;
    lab.must(&["vm", "stop", "web"]).await;
    refused(&lab, &["cp", "web:/etc", "/nowhere/x"], "invalid_argument", 2).await;
    refused(&lab, &["cp", "web:/etc", "-"], "failed_precondition", 5).await;
    lab.must(&["vm", "rm", "web"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

/// Files take the VM's network, and do without where it has none.
async fn lanes(lab: &Lab) {
    let (size, here) = (4_000_000, lab.scratch().join("many"));
    std::fs::write(&here, vec![9; size]).unwrap();
    let copy = [&here.display().to_string(), "web:/tmp/many"];
    let by_network = async || {
        let received =
            async || guest(lab, "cat /sys/class/net/eth0/statistics/rx_bytes").await.parse::<usize>().unwrap();
        let before = received().await;
        lab.must(&["cp", copy[0], copy[1]]).await;
        assert_eq!(guest(lab, "wc -c < /tmp/many; rm /tmp/many").await, size.to_string());
        received().await - before
    };
    assert!(by_network().await >= size, "the network carried it");
    // The command that takes the network away does not need it.
    let gateway = guest(lab, "ip route | awk '/^default/ {print $3}'").await;
    guest(lab, "ip link set eth0 down").await;
    assert!(by_network().await < size / 2, "the channel carried it");
    guest(lab, &format!("ip link set eth0 up && ip route add default via {gateway}")).await;
    assert!(by_network().await >= size, "the network carries again");
}

async fn files(lab: &Lab) {
    let here = lab.scratch().join("files");
    let tree = here.join("tree/sub");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("a file\nwith a strange näme"), vec![7; 300_000]).unwrap();
    std::fs::write(tree.join("program"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(tree.join("program"), std::fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink("program", tree.join("link")).unwrap();
    let path = |name: &str| here.join(name).display().to_string();

    // In, under its own name and under another, and back: the same.
    lab.must(&["cp", &path("tree"), "web:/tmp"]).await;
    lab.must(&["cp", &path("tree"), "web:/tmp/other"]).await;
    assert_eq!(
        guest(lab, "stat -c '%a %u' /tmp/tree/sub/program; readlink /tmp/other/sub/link").await,
        "750 0\nprogram"
    );
    lab.must(&["cp", "web:/tmp/other", &path("back")]).await;
    let same = Command::new("diff").args(["-r", "--no-dereference", &path("tree"), &path("back")]).output().unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    assert_eq!(std::fs::metadata(here.join("back/sub/program")).unwrap().mode() & 0o777, 0o750);
    // Contents alone, to another owner; a file in place of another; between a VM and itself.
    lab.must(&["cp", &format!("{}/.", path("tree")), "web:/srv/deep", "--owner", "1000:100"]).await;
    assert_eq!(guest(lab, "stat -c '%u %g' /srv/deep/sub/program").await, "1000 100");
    lab.must(&["cp", &format!("{}/sub/program", path("tree")), "web:/etc/motd"]).await;
    lab.must(&["cp", "web:/etc/motd", "web:/tmp/copied"]).await;
    assert_eq!(guest(lab, "cat /tmp/copied").await, "#!/bin/sh");
    lab.must(&["cp", "web:/srv/deep/.", &path("flat")]).await;
    assert!(here.join("flat/sub/program").exists());
    // As an archive through pipes.
    let archive = run(lab, &lab.binary("warren"), &["cp", "web:/tmp/tree", "-"], b"").stdout;
    run(lab, &lab.binary("warren"), &["cp", "-", "web:/tmp/piped"], &archive);
    assert_eq!(guest(lab, "wc -c < '/tmp/piped/tree/sub/a file\nwith a strange näme'").await, "300000");

    refused(lab, &["cp", "web:/no/such", &path("x")], "not_found", 3).await;
    refused(lab, &["cp", &path("tree"), "web:/no/such/place"], "not_found", 3).await;
    refused(lab, &["cp", &path("nothing"), "web:/tmp"], "invalid_argument", 2).await;
    refused(lab, &["cp", &path("tree"), &path("x")], "invalid_argument", 2).await;
    refused(lab, &["cp", &path("tree"), "none:/tmp"], "not_found", 3).await;
    // A full disk is said, and leaves no half of what was to be renamed.
    std::fs::write(here.join("large"), vec![1; 300 << 20]).unwrap();
    refused(lab, &["cp", &path("large"), "web:/tmp/large"], "failed_precondition", 5).await;
    assert_eq!(guest(lab, "ls -A /tmp | grep -c -e large -e warren-cp || true").await, "0");
    std::fs::remove_file(here.join("large")).unwrap();
}

async fn ports(lab: &Lab) {
    guest(lab, "setsid nc -ll -p 7 -e cat >/dev/null 2>&1 &").await;
    let mut forward = lab
        .outside(&lab.binary("warren"))
        .args(["port-forward", "web", "0:7", "0:9"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut address = || lines.next().expect("it says where it listens").split(' ').next().unwrap().to_owned();
    let (open, closed) = (address(), address());
    let ask = |to: String| {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream.write_all(&vec![b'x'; 100_000]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map(|_| answer.len())
    };
    let asks: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn({
                let open = open.clone();
                move || ask(open)
            })
        })
        .collect();
    for asked in asks {
        assert_eq!(asked.join().unwrap().unwrap(), 100_000);
    }
    // Nobody listens on that port of the VM: the connection ends without a byte.
    assert_eq!(ask(closed).unwrap_or_default(), 0);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(forward.id().cast_signed()), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    assert_eq!(forward.wait().unwrap().code(), Some(130));
    refused(lab, &["port-forward", "none", "0:7"], "not_found", 3).await;
}

/// A port nobody listens on.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// How many connections to a port of this machine are established, by its listener's end.
fn connections(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let own = format!(":{port:04X}");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 3 && row[1].ends_with(&own) && row[3] == "01").count()
}

/// Both roads of a session, each with some MiB through a real guest, its input's end, digest and exit status.
async fn roads(lab: &Lab, port: u16) {
    let bytes: Vec<u8> = (0..6_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let digest = run(lab, "sha256sum", &[], &bytes).stdout;
    for (road, direct) in [(&[][..], 1), (&["--no-direct"], 0)] {
        let mut client = lab
            .outside(&lab.binary("warren"))
            .args(road)
            .args(["exec", "-i", "web", "--", "sh", "-c", "echo up; sha256sum; exit 5"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(client.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!((line.as_str(), connections(port)), ("up\n", direct), "{road:?}");
        client.stdin.take().unwrap().write_all(&bytes).unwrap();
        let mut said = Vec::new();
        out.read_to_end(&mut said).unwrap();
        assert_eq!((said, client.wait().unwrap().code()), (digest.clone(), Some(5)), "{road:?}");
        let back = run(
            lab,
            &lab.binary("warren"),
            &[road, &["exec", "web", "--", "head", "-c", "6000000", "/dev/zero"]].concat(),
            b"",
        );
        assert!(back.stdout.len() == 6_000_000 && back.stdout.iter().all(|byte| *byte == 0), "{road:?}");
    }
}

/// A guest that prints for ever, to a client that has stopped reading: nobody between them holds more than windows.
async fn endless(lab: &Lab) {
    let resident = || {
        let pid = lab.pid(&lab.hosts()[0]).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = resident();
    for road in [&[][..], &["--no-direct"]] {
        let mut client = lab.outside(&lab.binary("warren"));
        let mut client = client.args(road).args(["exec", "web", "--", "yes"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = client.stdout.take().unwrap();
        let read = std::io::copy(&mut Read::take(&mut out, 16 << 20), &mut std::io::sink()).unwrap();
        assert_eq!(read, 16 << 20);
        // All is full by now, and another session is served meanwhile.
        assert_eq!(guest(lab, "echo served").await, "served");
        let grown = resident().saturating_sub(before);
        assert!(grown < 16 * 1024, "{road:?}: the host-agent grew by {grown} KiB");
        drop(out);
        assert_eq!(client.wait().unwrap().code(), Some(141), "{road:?}");
    }
}

/// Waits until the list of jobs says so of one.
async fn job_is(lab: &Lab, job: &str, state: &str) -> serde_json::Value {
    testkit::wait_until("the job's state", BOUND, async || {
        // A host-agent that was just started is not connected yet.
        let output = lab.warren(&["-o", "json", "exec", "ls", "web"]).await;
        let listed: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let mut jobs = listed["jobs"].as_array()?.iter();
        jobs.find(|known| known["name"] == job && known["state"] == state).cloned()
    })
    .await
}

async fn jobs(lab: &mut Lab) {
    let late = lab.warren(&["exec", "--timeout", "1s", "web", "--", "sleep", "1000"]).await;
    assert_eq!(late.status.code(), Some(124));
    assert!(String::from_utf8_lossy(&late.stderr).contains("did not end within 1s"));

    // Detached: it runs on over a restart of the host-agent, and is read and ended by who comes later.
    let script = "trap 'echo told; exit 9' TERM; n=0; while :; do echo $n; n=$((n+1)); sleep 0.2; done";
    let job = lab.must(&["exec", "-d", "web", "--", "sh", "-c", script]).await.trim().to_owned();
    let host = lab.hosts()[0].clone();
    lab.kill(&host);
    // From now on its clients cannot reach it: they take the bus.
    lab.start_process(&host, &[("WARREN_STREAM_ADVERTISE", "127.0.0.1:1")]);
    lab.wait_ready().await;
    let said = job_is(lab, &job, "running").await["output_bytes"].as_u64().unwrap();
    testkit::wait_until("more output", BOUND, async || {
        (job_is(lab, &job, "running").await["output_bytes"].as_u64().unwrap() > said).then_some(())
    })
    .await;
    assert!(lab.must(&["exec", "logs", "web", &job]).await.starts_with("0\n1\n2\n"));
    let mut attached = lab.spawn(&["exec", "attach", "web", &job, "--no-stdin"]);
    job_is(lab, &job, "running").await;
    lab.must(&["exec", "kill", "web", &job]).await;
    assert_eq!(attached.wait().await.unwrap().code(), Some(9));
    let again = lab.warren(&["exec", "attach", "web", &job]).await;
    assert_eq!(again.status.code(), Some(9));
    assert!(String::from_utf8_lossy(&again.stdout).ends_with("told\n"));
    refused(lab, &["exec", "kill", "web", &job], "failed_precondition", 5).await;
    refused(lab, &["exec", "attach", "web", "none"], "not_found", 3).await;
    refused(lab, &["exec", "-d", "web", "--", "no-such-program"], "failed_precondition", 5).await;

    // Named: its client is killed, and the next one takes over where it was, terminal included.
    let mut client = lab.spawn(&["exec", "-i", "--name", "talk", "web", "--", "sh", "-c", "echo up; read x; echo =$x"]);
    job_is(lab, "talk", "running").await;
    client.kill().await.unwrap();
    let output = run(lab, &lab.binary("warren"), &["exec", "attach", "web", "talk"], b"word\n").stdout;
    assert_eq!(String::from_utf8_lossy(&output), "up\n=word\n");
}

/// Root of a VM kills guest-agent: sessions end with an error, jobs are told to be lost, and a new agent serves on.
async fn agent_killed(lab: &Lab) {
    lab.must(&["exec", "-d", "--name", "doomed", "web", "--", "sleep", "1000"]).await;
    // The agent's command line begins with an @; process 1's does not.
    let kill = "kill -9 $(grep -l '^@' /proc/[0-9]*/cmdline | cut -d/ -f3); sleep 1000";
    let killer = lab.warren(&["exec", "web", "--", "sh", "-c", kill]).await;
    let said = String::from_utf8_lossy(&killer.stderr).into_owned();
    assert_eq!(killer.status.code(), Some(9), "{said}");
    assert!(said.contains("lost before it ended"), "{said}");
    assert_eq!(guest(lab, "echo back").await, "back");
    let lost = job_is(lab, "doomed", "lost").await;
    assert!(lost["message"].as_str().unwrap().contains("guest-agent was ended"), "{lost}");
    testkit::wait_until("the end of what it ran", BOUND, async || {
        guest(lab, "pidof sleep || true").await.is_empty().then_some(())
    })
    .await;
}

/// With the printed configuration alone, ssh and scp know the VM and its key; another key of that name is refused.
async fn plain_ssh(lab: &Lab) {
    let config = lab.scratch().join("ssh_config");
    std::fs::write(&config, lab.must(&["ssh-config"]).await).unwrap();
    let config = config.display().to_string();
    let said = run(lab, "ssh", &["-F", &config, "web.warren", "cat /etc/hostname; cat"], b"typed").stdout;
    assert_eq!(String::from_utf8_lossy(&said), "web\ntyped");
    let here = lab.scratch().join("from-scp");
    run(lab, "scp", &["-q", "-F", &config, "web.warren:/etc/hostname", &here.display().to_string()], b"");
    assert_eq!(std::fs::read_to_string(&here).unwrap(), "web\n");
    assert!(Path::new(&here).exists());
    rsync(lab, &config).await;
    editors(lab, &config).await;
    let unknown = lab.outside("ssh").args(["-F", &config, "none.warren", "true"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(255));
}

/// rsync both ways, with nothing of its own in the image: the program, its libraries and their loader are copied in.
async fn rsync(lab: &Lab, config: &str) {
    let libraries = Command::new("ldd").arg("/usr/bin/rsync").output().unwrap().stdout;
    let libraries = String::from_utf8_lossy(&libraries).into_owned();
    let (program, here) = (lab.scratch().join("rsync"), lab.scratch().join("rsynced"));
    std::fs::create_dir_all(&program).unwrap();
    let files = libraries.split_whitespace().filter(|word| word.starts_with('/')).chain(["/usr/bin/rsync"]);
    for file in files {
        std::fs::copy(file, program.join(Path::new(file).file_name().unwrap())).unwrap();
    }
    lab.must(&["cp", &program.display().to_string(), "web:/tmp"]).await;
    let shell = format!("ssh -F {config}");
    let there = "--rsync-path=/tmp/rsync/ld-linux-x86-64.so.2 --library-path /tmp/rsync /tmp/rsync/rsync";
    let tree = lab.scratch().join("files/tree").display().to_string();
    let pull = here.display().to_string();
    for _ in 0..2 {
        run(lab, "rsync", &["-a", "--delete", "-e", &shell, there, &format!("{tree}/"), "web.warren:/srv/rs/"], b"");
        run(lab, "rsync", &["-a", "--delete", "-e", &shell, there, "web.warren:/srv/rs/", &format!("{pull}/")], b"");
        let same = Command::new("diff").args(["-r", "--no-dereference", &tree, &pull]).output().unwrap();
        assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
        std::fs::write(lab.scratch().join("files/tree/sub/program"), "#!/bin/sh\n# another line\n").unwrap();
    }
}

/// What VS Code's Remote-SSH and Ansible stand on: a shell that is fed its commands without a terminal, sftp, and a proxy into the VM's network.
async fn editors(lab: &Lab, config: &str) {
    let fed = run(lab, "ssh", &["-T", "-F", config, "web.warren", "sh"], b"echo $0; exec 2>&1; uname; exit 0\n").stdout;
    assert_eq!(String::from_utf8_lossy(&fed), "sh\nLinux\n");
    let batch = b"mkdir /tmp/by-sftp\nput /etc/hostname /tmp/by-sftp/x\nrename /tmp/by-sftp/x /tmp/by-sftp/y\nls /tmp/by-sftp\n";
    let listed = run(lab, "sftp", &["-q", "-F", config, "-b", "-", "web.warren"], batch).stdout;
    assert!(String::from_utf8_lossy(&listed).contains("/tmp/by-sftp/y"));
    guest(lab, "setsid nc -ll -p 77 -e cat >/dev/null 2>&1 &").await;
    let port = free_port();
    let dynamic = format!("127.0.0.1:{port}");
    let mut proxy = lab.outside("ssh").args(["-F", config, "-N", "-D", &dynamic, "web.warren"]).spawn().unwrap();
    let answer = testkit::wait_until("an answer through the proxy", BOUND, async || socks(&dynamic, 77)).await;
    assert_eq!(answer, b"through");
    proxy.kill().unwrap();
    proxy.wait().unwrap();
}

/// Sends a word to a port of the VM's own loopback through a SOCKS 5 proxy (RFC 1928) and reads as much back.
fn socks(proxy: &str, port: u16) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(proxy).ok()?;
    stream.set_read_timeout(Some(BOUND)).ok()?;
    stream.write_all(&[5, 1, 0]).ok()?;
    stream.read_exact(&mut [0; 2]).ok()?;
    let [high, low] = port.to_be_bytes();
    stream.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).ok()?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).ok()?;
    stream.write_all(b"through").ok()?;
    let mut word = vec![0; 7];
    stream.read_exact(&mut word).ok()?;
    (reply[1] == 0).then_some(word)
}
