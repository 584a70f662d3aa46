//! The files that results go to: where, whether they are there already, and how one is written, whole or not at all.

use crate::cli;
use crate::error::{Failure, FailureKind};
use crate::mutex::lock;
use crate::template::Template;
use log::info;
use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use rustix::system::uname;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// What the name of a temporary file begins and ends with. In between are the host and the process that writes it.
const PREFIX: &str = ".rpc_client-";
const SUFFIX: &str = ".part";

/// The targets of the calls that are under way.
type UnderWay = Arc<Mutex<HashSet<PathBuf>>>;

/// The files of a batch.
pub struct Outputs {
    template: Template,
    skip_existing: bool,
    under_way: UnderWay,
    /// The folders that are there, can be written to, and have no temporary files of dead processes.
    prepared: HashSet<PathBuf>,
}

impl Outputs {
    /// Makes the outputs that `args` ask for, if results go to files.
    pub fn new(args: &cli::Client) -> Option<Outputs> {
        Some(Outputs {
            template: args.output.clone()?,
            skip_existing: args.skip_existing,
            under_way: UnderWay::default(),
            prepared: HashSet::new(),
        })
    }

    /// Returns the target of the call with this argument and number, whose folder is there then. None if the call is
    /// to be skipped.
    ///
    /// # Errors
    ///
    /// [`FailureKind::CannotCreate`] if nothing can be written there, or another call is about to.
    pub fn target(&mut self, argument: &[u8], number: u64) -> Result<Option<Target>, Failure> {
        let path = self.template.path(argument, number)?;
        match fs::metadata(&path) {
            Ok(there) if there.is_dir() => return Err(cannot_write(&path, "it is a folder")),
            Ok(there) if !there.is_file() => {
                return Err(cannot_write(&path, "it is not a regular file"));
            }
            Ok(_) if self.skip_existing => return Ok(None),
            _ => {}
        }

        let folder = folder_of(&path);
        if !self.prepared.contains(folder) {
            prepare(folder).map_err(|error| cannot_write(&path, error))?;
            self.prepared.insert(folder.into());
        }
        if !lock(&self.under_way).insert(path.clone()) {
            return Err(cannot_write(&path, "a call under way has the same output"));
        }
        Ok(Some(Target { path, under_way: Arc::clone(&self.under_way) }))
    }
}

/// Returns the folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes a folder, unless it is there, and looks whether it can be written to, before there is anything to write.
fn prepare(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    access(folder, Access::WRITE_OK | Access::EXEC_OK)?;
    if let Ok(entries) = fs::read_dir(folder) {
        entries.flatten().for_each(|entry| remove_if_left(&entry));
    }
    Ok(())
}

/// Removes a temporary file whose process is dead. If it cannot be removed, it harms nobody.
fn remove_if_left(entry: &DirEntry) {
    let is_left = entry.file_name().to_str().and_then(writer_of).is_some_and(is_dead);
    if is_left && fs::remove_file(entry.path()).is_ok() {
        info!("removed {}, whose process is dead", entry.path().display());
    }
}

/// Returns which process of this host writes the temporary file with this name, if it is one.
fn writer_of(name: &str) -> Option<Pid> {
    let rest = name.strip_prefix(&temporary_prefix())?.strip_suffix(SUFFIX)?;
    let (pid, _) = rest.split_once('-')?;
    Pid::from_raw(pid.parse().ok()?)
}

fn is_dead(process: Pid) -> bool {
    test_kill_process(process) == Err(Errno::SRCH)
}

/// Returns what the names of this host's temporary files begin with.
fn temporary_prefix() -> String {
    format!("{PREFIX}{}-", uname().nodename().to_string_lossy())
}

/// Where one call's result goes. Until it is dropped, no other call has the same.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    under_way: UnderWay,
}

impl Target {
    /// Returns the name of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file, as a temporary one in the same folder, which gets its name when it is whole (rename(2)). There
    /// is no fsync(2): a file may be empty after the system has crashed.
    ///
    /// # Errors
    ///
    /// [`FailureKind::CannotCreate`]. The temporary file is removed then.
    pub fn store(&self, result: &[u8]) -> Result<(), Failure> {
        static WRITTEN: AtomicU64 = AtomicU64::new(0);
        let number = WRITTEN.fetch_add(1, Relaxed);
        let name = format!("{}{}-{number}{SUFFIX}", temporary_prefix(), std::process::id());
        let temporary = folder_of(&self.path).join(OsStr::from_bytes(name.as_bytes()));
        let written =
            write_new(&temporary, result).and_then(|()| fs::rename(&temporary, &self.path));
        written.map_err(|error| {
            // What it tells is why there is no file.
            let _ = fs::remove_file(&temporary);
            cannot_write(&self.path, error)
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.path);
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(bytes)
}

fn cannot_write(path: &Path, why: impl std::fmt::Display) -> Failure {
    let message = format!("cannot write to \"{}\": {why}", path.display());
    Failure::new(FailureKind::CannotCreate, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_file_says_whose_it_is() {
        let own = format!("{}{}-0{SUFFIX}", temporary_prefix(), std::process::id());
        let writer = writer_of(&own).unwrap();
        assert_eq!(writer.as_raw_nonzero().get() as u32, std::process::id());
        assert!(!is_dead(writer));
        for other in ["a.part", ".rpc_client-", ".rpc_client-elsewhere-1-0.part", "x"] {
            assert_eq!(writer_of(other), None, "{other}");
        }
        // Above the largest number that Linux gives to a process (PID_MAX_LIMIT).
        let dead = own.replace(&std::process::id().to_string(), "5000000");
        assert!(writer_of(&dead).is_some_and(is_dead));
    }
}
