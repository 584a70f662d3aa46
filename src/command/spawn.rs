//! Starts a program in a session of its own, with pipes to its standard streams.
//!
//! The standard library has nothing for that but fork(2), which copies the page tables of the whole server: that
//! takes five times as long as posix_spawn(3), which borrows its memory until the program runs.

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, WaitOptions, waitpid};
use std::ffi::{CStr, CString};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;

/// A program that was started, and the server's ends of its pipes: None when they are closed.
#[derive(Debug)]
pub struct Child {
    /// The process id, which is the session's too on Linux, and the process group's anywhere.
    pub pid: Pid,
    pub stdin: Option<PipeWriter>,
    pub stdout: Option<Arc<PipeReader>>,
    pub stderr: Option<Arc<PipeReader>>,
}

/// Starts the program at `path` with the arguments `words`, its own name first, and with these environment
/// variables, each as `NAME=value`.
pub fn spawn(
    path: &Path,
    words: &[CString],
    environment: &[impl AsRef<CStr>],
) -> io::Result<Child> {
    let (stdin, to_child) = io::pipe()?;
    let (from_child, stdout) = io::pipe()?;
    let (errors, stderr) = io::pipe()?;

    // What the runtime opened for the server's own streams is below 3, so that none of these is.
    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_dup2(stdin.as_raw_fd(), 0)?;
    actions.add_dup2(stdout.as_raw_fd(), 1)?;
    actions.add_dup2(stderr.as_raw_fd(), 2)?;

    let pid = posix_spawn(path, &actions, &attributes()?, words, environment)?;
    // The numbers of processes are positive.
    let pid = Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::Other)?;
    Ok(Child {
        pid,
        stdin: Some(to_child),
        stdout: Some(from_child.into()),
        stderr: Some(errors.into()),
    })
}

/// Returns what a program begins with: a session of its own, and with it a process group, without a controlling
/// terminal; signals as it expects them: none blocked, and SIGPIPE, which Rust's runtime ignores, as the system has
/// it.
fn attributes() -> nix::Result<PosixSpawnAttr> {
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_sigmask(&SigSet::empty())?;
    attributes.set_sigdefault(&SigSet::from_iter([Signal::SIGPIPE]))?;
    let signals = PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
    attributes.set_flags(signals | session())?;
    Ok(attributes)
}

#[cfg(target_os = "linux")]
fn session() -> PosixSpawnFlags {
    // nix has no name for it yet.
    PosixSpawnFlags::from_bits_retain(nix::libc::POSIX_SPAWN_SETSID.into())
}

/// Returns the flag for a process group alone: elsewhere, the group of the number 0 is a new one.
#[cfg(not(target_os = "linux"))]
fn session() -> PosixSpawnFlags {
    PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
}

/// Reaps a child, if it has ended and nothing else has to be told so first.
pub fn try_wait(pid: Pid) -> io::Result<Option<ExitStatus>> {
    let waited = retry_on_intr(|| waitpid(Some(pid), WaitOptions::NOHANG))?;
    Ok(waited.map(|(_, status)| ExitStatus::from_raw(status.as_raw())))
}

/// Returns the server's own environment variables, without those in `left_out`, each as `NAME=value`.
pub fn inherited(left_out: &[&str]) -> Vec<CString> {
    let variables = std::env::vars_os().filter(|(name, _)| !left_out.iter().any(|out| name == out));
    let variables = variables.map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        variable.into_vec()
    });
    // None has a NUL in it: the system gave them.
    variables.filter_map(|variable| CString::new(variable).ok()).collect()
}

/// Returns an environment variable as `NAME=value`, with SUB in place of each NUL, which no variable can have.
pub fn variable(name: &str, value: &str) -> Option<CString> {
    let variable = format!("{name}={value}").replace('\0', "\u{1a}");
    CString::new(variable).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_program_leads_a_session_and_gets_no_other_variables() {
        let words = [c"sh".into(), c"-c".into(), c"ps -o pid=,sid=,tty= -p $$; env".into()];
        let mut environment = inherited(&["HOME", "PATH"]);
        environment.extend(variable("ADDED", "a\0b"));
        environment.extend(variable("PATH", &std::env::var("PATH").unwrap()));
        let child = spawn(Path::new("/bin/sh"), &words, &environment).unwrap();
        let mut output = String::new();
        child.stdout.as_deref().unwrap().read_to_string(&mut output).unwrap();
        let status = loop {
            match try_wait(child.pid).unwrap() {
                Some(status) => break status,
                None => std::thread::yield_now(),
            }
        };
        assert!(status.success());
        let pid = child.pid.as_raw_nonzero();
        if cfg!(target_os = "linux") {
            let first: Vec<&str> = output.lines().next().unwrap().split_whitespace().collect();
            assert_eq!(first, [pid.to_string(), pid.to_string(), "?".into()]);
        }
        assert!(output.contains("\nADDED=a\u{1a}b\n"), "{output}");
        assert!(!output.contains("\nHOME="), "{output}");
    }

    #[test]
    fn a_program_that_is_not_there_is_told_as_the_system_has_it() {
        let error = spawn(Path::new("/no/such/program"), &[c"p".into()], &[c""]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
