//! Files in, files out: what is sent of them, where results go, and what an interrupted batch leaves.

use crate::commands::Folder;
use crate::harness::*;
use amiquip::AmqpProperties;
use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;

/// The client in a folder, with names of files on its standard input.
fn client_in(folder: &Folder, queue: &Queue, args: &[&str], names: &[&[u8]]) -> Ended {
    let args = [&["--queue", queue.name(), "--send-on", "nul"], args, &["-"]].concat();
    let mut command = client_command(&broker(), &args);
    feed(command.current_dir(&folder.0), names.join(&b'\0')).wait()
}

/// What is in the files of a folder, by their names, temporary files and all.
fn contents(folder: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().as_bytes().to_vec(), fs::read(entry.path()).unwrap()))
        .collect()
}

/// So many bytes of any kind, the same for the same number.
fn bytes(number: usize) -> Vec<u8> {
    (0..number * 997).map(|n| (n * n + number) as u8).collect()
}

#[test]
fn files_go_through_whatever_their_names_and_bytes() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let _server = server(&queue, &["--workers", "4", "--procedure", "p=cat"]);
    fs::create_dir(folder.path("in")).unwrap();
    let long = "x".repeat(255);
    let names: [&[u8]; 9] = [
        b"plain",
        b"with space",
        b"new\nline",
        b"-rf",
        b"caf\xe9",
        b".hidden",
        b"a.tar.gz",
        b"{}",
        long.as_bytes(),
    ];
    for (number, name) in names.iter().enumerate() {
        fs::write(folder.path("in").join(OsStr::from_bytes(name)), bytes(number)).unwrap();
    }
    let expected = contents(&folder.path("in"));
    symlink("in/plain", folder.path("link")).unwrap();

    let paths: Vec<Vec<u8>> = names.iter().map(|name| [b"in/", *name].concat()).collect();
    let mut paths: Vec<&[u8]> = paths.iter().map(Vec::as_slice).collect();
    let args = ["--files", "--output", "out/to/{/}", "p"];
    client_in(&folder, &queue, &args, &paths).expect(0, "", "");
    assert_eq!(contents(&folder.path("out/to")), expected);

    // Of those that cannot be read each is a failure of its own.
    paths.insert(1, b"in/none");
    paths.insert(2, b"out");
    paths.insert(3, b"/dev/zero");
    paths.push(b"link");
    let args = ["--files", "--output", "again/{#}", "p"];
    let ended = client_in(&folder, &queue, &args, &paths);
    assert_eq!((ended.code(), ended.stdout.as_str()), (66, ""), "{ended:?}");
    let missing = "rpc_client: line 2: p(in/none): cannot read the file: No such file or directory";
    assert!(ended.stderr.starts_with(missing), "{ended:?}");
    let summary = "rpc_client: 3 of 13 calls failed: 2 no-input, 1 too-large\n";
    assert!(ended.stderr.ends_with(summary), "{ended:?}");
    let again = contents(&folder.path("again"));
    assert_eq!((again.len(), &again[&b"1"[..]], &again[&b"13"[..]]), (10, &bytes(0), &bytes(0)));
}

/// Nobody writes to the FIFO of that name; what the shell gives the client open is read.
#[test]
fn a_fifo_keeps_no_call_waiting() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let _server = server(&queue, &["--procedure", "p=cat"]);
    let fifo = folder.path("fifo").display().to_string();
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    symlink(&fifo, folder.path("link")).unwrap();
    let script = "\"$@\" <(echo one) /dev/stdin < <(echo two)";
    let link = folder.path("link").display().to_string();
    let client = env!("CARGO_BIN_EXE_rpc_client");
    let args =
        ["-c", script, "bash", client, "--queue", queue.name(), "--files", "p", &fifo, &link];
    let ended = Process::spawn(&mut program("bash", &broker(), &args)).wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (66, "one\ntwo\n"), "{ended:?}");
    let why = "cannot read the file: it is a FIFO, for whose end all calls would wait";
    assert!(ended.stderr.starts_with(&format!("rpc_client: p({fifo}): {why}")), "{ended:?}");
    assert_eq!(ended.stderr.matches(why).count(), 2, "{ended:?}");
}

/// On the command line, too, a name may have any bytes.
#[test]
fn a_call_is_named_by_its_file_and_its_output() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let _server = server(&queue, &["--procedure", "p=tr a-z A-Z"]);
    let names = [OsStr::from_bytes(b"caf\xe9.txt"), OsStr::new("b.txt")];
    names.iter().for_each(|name| fs::write(folder.0.join(name), b"text").unwrap());
    let run = |args: &[&str], names: &[&OsStr]| {
        let args = [&["--queue", queue.name(), "--files"], args].concat();
        let mut command = client_command(&broker(), &args);
        Process::spawn(command.current_dir(&folder.0).args(names)).wait()
    };
    let transcript = " [x] Requesting p(b.txt)\n [.] Wrote out/b.png\n";
    let args = ["--format", "transcript", "--output", "out/{.}.png", "p"];
    run(&args, &names[1..]).expect(0, transcript, "");
    let ended = run(&args, &names);
    assert!(ended.stdout.contains(" [.] p(b.txt): wrote out/b.png\n"), "{ended:?}");
    let ended = run(&["--format", "json", "--output", "out/{.}.png", "p"], &names);
    let calls: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(calls[0]["output_base64"], "b3V0L2NhZukucG5n");
    assert_eq!(
        (&calls[1]["argument"], &calls[1]["output"]),
        (&"b.txt".into(), &"out/b.png".into())
    );
    assert!(calls[1].get("result").is_none());
    let written = contents(&folder.path("out"));
    assert_eq!((written.len(), &written[&b"caf\xe9.png"[..]]), (2, &b"TEXT".to_vec()));
    // Without an output, the result is where it always is.
    run(&["p"], &names).expect(0, "TEXT\nTEXT\n", "");
}

#[test]
fn what_has_no_place_for_its_result_is_not_called() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let server = server(&queue, &[]);
    fs::create_dir_all(folder.path("out/folder")).unwrap();
    fs::write(folder.path("out/file"), "").unwrap();
    symlink("/dev/null", folder.path("out/device")).unwrap();
    symlink("missing", folder.path("out/nowhere")).unwrap();
    let refused = |arguments: &[&[u8]], why: &str| {
        let ended = client_in(&folder, &queue, &["-q", "--output", "out/{}", "fun"], arguments);
        assert_eq!((ended.code(), ended.stdout.as_str()), (73, ""), "{ended:?}");
        assert!(ended.stderr.ends_with(&format!("{why}\n")), "{ended:?}");
    };
    refused(&[b"folder"], "cannot write to \"out/folder\": it is a folder");
    refused(&[b"../2"], "cannot write to \"out/../2\": the argument has .. in it");
    refused(&[b"device"], "cannot write to \"out/device\": it is not a regular file");
    let nowhere = "it is a link that leads nowhere: No such file or directory (os error 2)";
    refused(&[b"nowhere"], &format!("cannot write to \"out/nowhere\": {nowhere}"));
    refused(&[b"file/3"], "cannot write to \"out/file/3\": \"out/file\" is not a folder");
    refused(&[b"file/3/4"], "cannot write to \"out/file/3/4\": \"out/file\" is not a folder");
    let long = "x".repeat(256);
    let too_long = "File name too long (os error 36)";
    refused(&[long.as_bytes()], &format!("cannot write to \"out/{long}\": {too_long}"));
    symlink("itself", folder.path("out/itself")).unwrap();
    let itself = "it is a link that leads nowhere: Too many levels of symbolic links";
    refused(&[b"itself"], &format!("cannot write to \"out/itself\": {itself} (os error 40)"));
    refused(&[b"nowhere/3"], "cannot write to \"out/nowhere/3\": \"out/nowhere\" is not a folder");
    assert_eq!(server.stdout(), " [x] Awaiting RPC requests\n", "no call was made");
}

/// However long the first of them is over, and though its file is there.
#[test]
fn a_file_is_the_output_of_one_call() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let server = server(&queue, &["--procedure", "p=cat"]);
    fs::create_dir(folder.path("out")).unwrap();
    symlink("out", folder.path("link")).unwrap();
    let arguments = ["./4", "4", "link/4", "out/5", "link/5", "4"].map(str::as_bytes);
    for skip in [&[][..], &["--skip-existing"]] {
        let args = [skip, &["--in-flight", "1", "--output", "{}.txt", "p"]].concat();
        let ended = client_in(&folder, &queue, &args, &arguments);
        assert_eq!((ended.code(), ended.stdout.as_str()), (73, ""), "{ended:?}");
        let same = "an earlier call has the same output; put {#} or {.} into --output";
        let of = |line, name: &str| {
            format!("rpc_client: line {line}: p({name}): cannot write to \"{name}.txt\": {same}\n")
        };
        let told = of(2, "4") + &of(5, "link/5") + &of(6, "4");
        assert!(ended.stderr.starts_with(&told), "{ended:?}");
    }
    assert_eq!(server.stdout().matches(" [.] p(").count(), 3, "{}", server.stdout());
}

/// The result of a call goes to the file that the link leads to, whole or not at all, and the link stays.
#[test]
fn a_link_is_followed() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let _server = server(&queue, &[]);
    fs::create_dir(folder.path("real")).unwrap();
    fs::write(folder.path("real/file"), "a former result").unwrap();
    symlink("real/file", folder.path("link")).unwrap();
    let output = folder.path("link").display().to_string();
    let args = ["--queue", queue.name(), "--format", "json", "--output", &output, "fun", "4"];
    let ended = Process::spawn(&mut client_command(&broker(), &args)).wait();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.stdout.contains(&format!("\"output\":\"{output}\"")), "{ended:?}");
    assert_eq!(fs::read_link(folder.path("link")).unwrap(), Path::new("real/file"));
    let real = contents(&folder.path("real"));
    assert_eq!(real, BTreeMap::from([(b"file".to_vec(), b"400".to_vec())]));
}

/// By whatever name, and though it is there already.
#[test]
fn no_result_replaces_the_input_of_its_call() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let server = server(&queue, &["--procedure", "p=wc -c"]);
    fs::write(folder.path("a.jpg"), "picture").unwrap();
    symlink("a.jpg", folder.path("link")).unwrap();
    for (template, name) in [("{}", "a.jpg"), ("{.}.jpg", "a.jpg"), ("a.jpg", "link")] {
        for skip in [&[][..], &["--skip-existing"]] {
            let args = [skip, &["--queue", queue.name(), "--files", "--output", template]].concat();
            let mut command = client_command(&broker(), &args);
            let client = Process::spawn(command.current_dir(&folder.0).args(["p", name]));
            let why = "cannot write to \"a.jpg\": it is the call's own input";
            client.wait().expect(73, "", &format!("rpc_client: p({name}): {why}\n"));
        }
    }
    assert_eq!(fs::read(folder.path("a.jpg")).unwrap(), b"picture");
    assert_eq!(server.stdout(), " [x] Awaiting RPC requests\n", "no call was made");
}

#[test]
fn options_about_files_that_do_not_go_together() {
    for (args, told) in [
        (&["--files", "p"][..], "--files is about arguments"),
        (&["--skip-existing", "p", "1"], "--output <TEMPLATE>"),
        (&["--output", "", "p", "1"], "the template is empty"),
        (&["--output", "out", "p", "1", "2"], "--output has no placeholder"),
        (&["--output", "out", "p", "-"], "--output has no placeholder"),
        (&["--output", "{}", "--repeat", "2", "p", "1"], "put {#} into --output"),
    ] {
        let ended = client(args);
        assert_eq!((ended.code(), ended.stdout.as_str()), (64, ""), "{ended:?}");
        assert!(ended.stderr.contains(told), "{ended:?}");
    }
}

/// A command that may do what root may in namespaces of its own. None where the system does not let anybody.
fn as_root_of_its_own() -> Option<[&'static str; 2]> {
    let unshare = ["unshare", "-rm"];
    let tried = Command::new(unshare[0]).args([unshare[1], "true"]).output();
    tried.is_ok_and(|tried| tried.status.success()).then_some(unshare)
}

/// At the limit of a file, where 8 KiB fit; and, if one can be mounted here, on a disk of two pages that is full.
#[test]
fn a_result_that_cannot_be_written_leaves_nothing() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let _server = server(&queue, &[]);
    let run = |wrapper: &[&str], script: &str, why: &str| {
        let client = env!("CARGO_BIN_EXE_rpc_client");
        let script = format!("{script} && \"$0\" \"$@\"; code=$?; ls -A; exit $code");
        let args = ["sh", "-c", &script, client, "--queue", queue.name(), "--output", "{}", "fib"];
        let args = [wrapper, &args, &["10", "50000", "20"]].concat();
        let mut command = program(args[0], &broker(), &args[1..]);
        let ended = Process::spawn(command.current_dir(&folder.0)).wait();
        let told = format!(
            "rpc_client: fib(50000): cannot write to \"50000\": {why}\n\
             rpc_client: 1 of 3 calls failed: 1 cannot-create\n"
        );
        ended.expect(73, "10\n20\n", &told);
    };
    run(&[], "ulimit -f 16", "File too large (os error 27)");
    let full = "No space left on device (os error 28)";
    match as_root_of_its_own() {
        Some(wrapper) => {
            run(&wrapper, "mount -t tmpfs -o size=8k none \"$PWD\" && cd \"$PWD\"", full)
        }
        // Not by eprintln, whose text the test harness keeps to itself.
        None => writeln!(std::io::stderr(), "SKIPPED: a full disk: unshare -rm is not permitted")
            .unwrap(),
    }
}

/// Modes do not bind root, and so it is another user who is denied something.
#[test]
fn what_may_not_be_read_or_written_is_told_before_the_call() {
    const NOBODY: u32 = 65_534;
    let (queue, folder) = (Queue::new(), Folder::new());
    let server = server(&queue, &["--procedure", "p=cat"]);
    // Where another user finds it.
    let client = folder.path("rpc_client");
    fs::copy(env!("CARGO_BIN_EXE_rpc_client"), &client).unwrap();
    folder.write("secret", "of its owner", 0o000);
    folder.write("public", "of all", 0o644);
    fs::create_dir(folder.path("locked")).unwrap();
    fs::set_permissions(folder.path("locked"), Permissions::from_mode(0o555)).unwrap();
    let run = |args: &[&str]| {
        let args = [&["-q", "--queue", queue.name(), "--files"], args].concat();
        let mut command = program(client.to_str().unwrap(), &broker(), &args);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Process::spawn(command.current_dir(&folder.0)).wait()
    };
    let denied = "Permission denied (os error 13)\n";
    let unread = format!("rpc_client: p(secret): cannot read the file: {denied}");
    run(&["p", "secret"]).expect(66, "", &unread);
    for (output, told) in [("locked/{}", "locked/public"), ("locked/new/{}", "locked/new/public")] {
        let unwritten = format!("rpc_client: p(public): cannot write to \"{told}\": {denied}");
        run(&["--output", output, "p", "public"]).expect(73, "", &unwritten);
    }
    assert_eq!(server.stdout(), " [x] Awaiting RPC requests\n", "no call was made");
    run(&["p", "public"]).expect(0, "of all\n", "");
}

/// The first call has no answer until that is done, and only so many files are read ahead.
#[test]
fn files_that_grow_and_vanish_meanwhile() {
    const FILES: usize = 200;
    let (queue, folder) = (Queue::new(), Folder::new());
    let (finish, is_time) = mpsc::channel::<()>();
    let (tell, begun) = mpsc::channel();
    let mut is_first = true;
    let _server = StubServer::start(&queue, usize::MAX, move |channel, request| {
        if std::mem::take(&mut is_first) {
            tell.send(()).unwrap();
            is_time.recv_timeout(PATIENCE).unwrap();
        }
        reply(channel, request, &request.body, AmqpProperties::default());
    });
    let names: Vec<String> = (0..FILES).map(|number| number.to_string()).collect();
    names.iter().for_each(|name| fs::write(folder.path(name), "short").unwrap());
    let args = ["--queue", queue.name(), "--files", "--in-flight", "1", "--output", "{}.out"];
    let mut command = client_command(&broker(), &[&args[..], &["p"]].concat());
    let client = Process::spawn(command.args(&names).current_dir(&folder.0));
    begun.recv_timeout(PATIENCE).unwrap();
    fs::remove_file(folder.path("190")).unwrap();
    fs::write(folder.path("191"), "grown").unwrap();
    let long = vec![b'x'; 3_000_000];
    fs::write(folder.path("192"), &long).unwrap();
    // One that grows while it is read, and faster than anybody could read it.
    let (grower, is_over) = (folder.path("193"), Arc::new(AtomicBool::new(false)));
    let over = Arc::clone(&is_over);
    let growing = thread::spawn(move || {
        let mut file = fs::File::create(grower).unwrap();
        let mut length = 0;
        while !over.load(SeqCst) && length < 100_000_000 {
            length += file.write(&[b'y'; 65_536]).unwrap();
        }
    });
    finish.send(()).unwrap();
    let ended = client.wait();
    is_over.store(true, SeqCst);
    growing.join().unwrap();

    let gone = "rpc_client: p(190): cannot read the file: No such file or directory (os error 2)\n";
    assert!(ended.stderr.starts_with(gone), "{ended:?}");
    let written = |name: &str| fs::read(folder.path(&format!("{name}.out")));
    assert_eq!(written("189").unwrap(), b"short");
    assert_eq!(written("191").unwrap(), b"grown");
    assert!(written("192").unwrap() == long);
    assert_eq!(written("194").unwrap(), b"short");
    // What was there at that moment, or too much by then; never something else.
    match written("193") {
        Ok(seen) => {
            assert!(seen.iter().all(|byte| *byte == b'y'));
            assert_eq!(
                (ended.code(), ended.stderr.matches(" calls failed: 1 no-input").count()),
                (66, 1)
            );
        }
        Err(_) => assert!(ended.stderr.contains("rpc_client: p(193): "), "{ended:?}"),
    }
    assert!(contents(&folder.0).keys().all(|name| !name.ends_with(b".part")));
}

/// A temporary file is removed unless somebody writes it, and so has a lock on it; also if there is nothing to do.
#[test]
fn what_a_dead_client_left_is_removed() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let _server = server(&queue, &[]);
    let locked = fs::File::create(folder.path(".rpc_client-1.part")).unwrap();
    flock(&locked, FlockOperation::LockExclusive).unwrap();
    let output = folder.path("{}").display().to_string();
    for skip in [&[][..], &["--skip-existing"]] {
        fs::write(folder.path(".rpc_client-2.part"), "half").unwrap();
        let ended = queue.client(&[skip, &["-v", "--output", &output, "fun", "1", "2"]].concat());
        assert_eq!(ended.code(), 0, "{ended:?}");
        assert_eq!(ended.stderr.matches("which nobody writes any more").count(), 1, "{ended:?}");
        let left = contents(&folder.0);
        assert_eq!(left.keys().collect::<Vec<_>>(), [&b".rpc_client-1.part"[..], b"1", b"2"]);
    }
}

/// A result has its file as soon as it comes, whatever waits in front of it; `kill -9` costs what is in flight, and
/// the next run makes no other call.
#[test]
fn a_batch_goes_on_where_it_was_killed() {
    const CALLS: usize = 40;
    let (queue, folder) = (Queue::new(), Folder::new());
    let arguments: Vec<String> = (0..CALLS).map(|n| n.to_string()).collect();
    let output = folder.path("{}.out").display().to_string();
    let args = ["--queue", queue.name(), "--in-flight", "8", "--output", &output];
    let args = [&args[..], &["--skip-existing", "--stats", "fun"]].concat();
    let run = |command: &mut Command| Process::spawn(command.args(&arguments));

    let (tell, answered) = mpsc::channel();
    let mut is_first = true;
    // The first call has no answer, so that the batch stops behind it.
    let server_that_forgets = StubServer::start(&queue, 8, move |channel, request| {
        if !std::mem::take(&mut is_first) {
            reply(channel, request, &request.body, AmqpProperties::default());
        }
        tell.send(()).unwrap();
    });
    let client = run(&mut client_command(&broker(), &args));
    (0..8).for_each(|_| answered.recv_timeout(PATIENCE).unwrap());
    // By their names: a temporary file may get its own while it is looked at.
    let results = || {
        let names = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.as_bytes().ends_with(b".out")).count()
    };
    await_that("all results are there", || results() == 7);
    client.signal("KILL");
    client.wait();
    server_that_forgets.join();

    let server = server(&queue, &[]);
    let ended = run(&mut client_command(&broker(), &args)).wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, ""), "{ended:?}");
    assert!(ended.stderr.starts_with("rpc_client: 33 calls, 0 failed, 7 skipped, "), "{ended:?}");
    assert_eq!(server.stdout().matches(" [.] fun(").count(), 33);
    assert_eq!(contents(&folder.0).len(), CALLS);
    // Nothing is left to do, for which no broker is needed.
    drop(server);
    let ended = run(&mut client_command("amqp://127.0.0.1:1", &args)).wait();
    assert!(ended.stderr.starts_with("rpc_client: 0 calls, 0 failed, 40 skipped, "), "{ended:?}");
    assert_eq!((ended.code(), contents(&folder.0).len()), (0, CALLS));
}
