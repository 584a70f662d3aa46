//! What /proc tells of processes (proc(5)). Where it is not mounted, and elsewhere than on Linux, it tells nothing.

use rustix::process::{Pid, Signal, kill_process};
#[cfg(target_os = "linux")]
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use std::collections::HashMap;
use std::fs;
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::str::SplitWhitespace;
use std::sync::OnceLock;

/// A process, as it was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: Pid,
    /// None: it is outside of the server's container.
    pub parent: Option<Pid>,
    pub session: Option<Pid>,
    /// Whether it has not ended yet. Its parent may still have to reap one that has.
    pub is_alive: bool,
    /// When it was started, in ticks since the system's start. Together with its number, it is the same for no other.
    pub started: u64,
}

impl Process {
    /// Returns the process that has this number now, if there is one.
    pub fn find(pid: Pid) -> Option<Process> {
        if !cfg!(target_os = "linux") {
            return None;
        }
        let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        Process::parse(pid, &String::from_utf8_lossy(&stat))
    }

    /// Parses proc_pid_stat(5). The second field is a name in parentheses, which may have any characters in it.
    fn parse(pid: Pid, stat: &str) -> Option<Process> {
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let state = fields.next()?;
        let parent = pid_field(&mut fields)?;
        let _group = fields.next()?;
        let session = pid_field(&mut fields)?;
        let threads: u32 = fields.nth(13)?.parse().ok()?;
        let started = fields.nth(1)?.parse().ok()?;
        // If its first thread has ended and others have not, it is told as a zombie, and is none.
        let is_alive = !matches!(state, "Z" | "X") || threads > 1;
        Some(Process { pid, parent, session, is_alive, started })
    }

    /// Sends it a signal. If it has ended, no other process gets it.
    pub fn signal(&self, signal: Signal) {
        if let Some(pinned) = Pinned::find(self.pid)
            && pinned.process.started == self.started
        {
            pinned.signal(signal);
        }
    }

    /// Returns the value that a variable had when its program was started. None if it had none, has overwritten it, or
    /// does not let others see it.
    pub fn variable(&self, name: &str) -> Option<String> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid.as_raw_nonzero())).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let value = variables
            .find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        String::from_utf8(value.into()).ok()
    }
}

/// A process that was looked at when there was a descriptor for it already: what is known of it holds for what gets
/// the signal.
pub struct Pinned {
    pub process: Process,
    #[cfg(target_os = "linux")]
    descriptor: Option<OwnedFd>,
}

impl Pinned {
    /// Returns the process that has this number now, if there is one.
    pub fn find(pid: Pid) -> Option<Pinned> {
        // There is none with a kernel before 5.3, in some sandboxes, and if too many are open.
        #[cfg(target_os = "linux")]
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok();
        Some(Pinned {
            process: Process::find(pid)?,
            #[cfg(target_os = "linux")]
            descriptor,
        })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        #[cfg(target_os = "linux")]
        if let Some(descriptor) = &self.descriptor {
            let _ = pidfd_send_signal(descriptor, signal);
            return;
        }
        let _ = kill_process(self.process.pid, signal);
    }
}

/// Parses the number of a process. None: it is no number, or that of no process, 0.
fn pid_field(fields: &mut SplitWhitespace<'_>) -> Option<Option<Pid>> {
    let number: i32 = fields.next()?.parse().ok()?;
    Some(if number > 0 { Pid::from_raw(number) } else { None })
}

/// Returns the processes with the numbers `roots`, as far as they are children of `parent`, and all their descendants.
pub fn trees(parent: Pid, roots: impl IntoIterator<Item = Pid>) -> Vec<Process> {
    let family = Family::look();
    let mut found = Vec::new();
    let mut to_look_at: Vec<(Pid, Pid)> = roots.into_iter().map(|root| (root, parent)).collect();
    while let Some((pid, parent)) = to_look_at.pop() {
        // One that has another parent by now has lost that one, or is another process.
        let Some(process) = Process::find(pid).filter(|now| now.parent == Some(parent)) else {
            continue;
        };
        found.push(process);
        to_look_at.extend(family.children(pid).into_iter().map(|child| (child, pid)));
    }
    found
}

/// Returns the children of a process.
pub fn children(parent: Pid) -> Vec<Pid> {
    Family::look().children(parent)
}

/// Who is whose child.
enum Family {
    /// In a file of each thread's: `/proc/PID/task/TID/children`.
    Files,
    /// In such files as the kernel has in any case: all processes were looked at.
    Scanned(HashMap<Pid, Vec<Pid>>),
}

impl Family {
    fn look() -> Family {
        static HAS_FILES: OnceLock<bool> = OnceLock::new();
        // They depend on the kernel's CONFIG_PROC_CHILDREN.
        match HAS_FILES.get_or_init(|| fs::exists("/proc/thread-self/children").unwrap_or(false)) {
            true => Family::Files,
            false => Family::scan(),
        }
    }

    fn scan() -> Family {
        let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
        for process in numbers("/proc").into_iter().filter_map(Process::find) {
            if let Some(parent) = process.parent {
                children.entry(parent).or_default().push(process.pid);
            }
        }
        Family::Scanned(children)
    }

    fn children(&self, parent: Pid) -> Vec<Pid> {
        match self {
            Family::Files => {
                let tasks = format!("/proc/{}/task", parent.as_raw_nonzero());
                let of = |thread: Pid| format!("{tasks}/{}/children", thread.as_raw_nonzero());
                let lists =
                    numbers(&tasks).into_iter().map(|thread| fs::read_to_string(of(thread)));
                lists.flat_map(|list| parse_list(&list.unwrap_or_default())).collect()
            }
            Family::Scanned(children) => children.get(&parent).cloned().unwrap_or_default(),
        }
    }
}

/// Returns the numbers in the text of a `children` file.
pub fn parse_list(text: &str) -> Vec<Pid> {
    text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// Returns the names in a folder that are numbers.
fn numbers(folder: &str) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| Pid::from_raw(name.parse().ok()?)).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use rustix::process::getpid;
    use std::process::{Child, Command, Stdio};

    fn start(program: &str, args: &[&str]) -> (Child, Process) {
        let mut command = Command::new(program);
        let child =
            command.args(args).env("FIB_RPC_TEST", "x=y").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::find(Pid::from_child(&child)).unwrap();
        (child, process)
    }

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let (mut child, process) = start("cat", &[]);
        assert_eq!(process.parent, Some(getpid()));
        assert!(process.is_alive);
        Process { started: process.started - 1, ..process }.signal(Signal::KILL);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success(), "a signal for another process has reached it");
        assert!(Process::find(process.pid).is_none_or(|now| now.started != process.started));
        process.signal(Signal::KILL);
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive_before_it_is_reaped() {
        let (mut child, process) = start("cat", &[]);
        process.signal(Signal::KILL);
        while Process::find(process.pid).unwrap().is_alive {
            std::thread::yield_now();
        }
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let (mut child, process) = start("cat", &[]);
        // Until cat runs in it, the process has this one's variables.
        while process.variable("FIB_RPC_TEST").is_none() {
            std::thread::yield_now();
        }
        assert_eq!(process.variable("FIB_RPC_TEST").as_deref(), Some("x=y"));
        assert_eq!(process.variable("FIB_RPC_TES"), None);
        assert_eq!(process.variable("RPC_TEST"), None);
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_name_with_parentheses_and_a_first_thread_that_has_ended() {
        let stat = "7 (a) b) Z 1 7 5 0 -1 4228352 99 0 0 0 0 0 0 0 20 0 2 0 1234 0 0";
        let expected = Process {
            pid: Pid::from_raw(7).unwrap(),
            parent: Pid::from_raw(1),
            session: Pid::from_raw(5),
            is_alive: true,
            started: 1234,
        };
        assert_eq!(Process::parse(expected.pid, stat), Some(expected));
        assert_eq!(Process::parse(expected.pid, "7 (a) b) Z 1"), None);
    }

    /// By the kernel's files, and by a look at all processes where there are none.
    #[test]
    fn the_tree_below_a_process() {
        let (mut child, process) = start("sh", &["-c", "sleep 1000 & sh -c 'cat; :'; wait"]);
        let tree = || trees(getpid(), [process.pid]);
        while tree().len() < 4 {
            std::thread::yield_now();
        }
        let scanned = Family::scan();
        for process in tree() {
            let mut lists = [children(process.pid), scanned.children(process.pid)];
            lists.iter_mut().for_each(|list| list.sort_unstable_by_key(|pid| pid.as_raw_nonzero()));
            assert_eq!(lists[0], lists[1]);
        }
        assert_eq!(trees(process.pid, [process.pid]), [], "it is no child of its own");
        tree().iter().for_each(|process| process.signal(Signal::KILL));
        child.wait().unwrap();
    }
}
