//! The files that results go to: where, whether they are there already, and how one is written, whole or not at all.

use crate::cli;
use crate::error::{Failure, FailureKind};
use crate::template::Template;
use log::info;
use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use rustix::system::uname;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, DirEntry, File, Metadata};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the name of a temporary file begins and ends with. In between are the host and the process that writes it.
const PREFIX: &str = ".rpc_client-";
const SUFFIX: &str = ".part";

/// Why a call has no target of its own, and what to do.
const SAME_OUTPUT: &str = "an earlier call has the same output; put {#} or {.} into --output";

/// What tells a file from all others: its device and its number there. No two names of one folder can hide it.
type FileId = (u64, u64);

/// The files of a batch.
pub struct Outputs {
    template: Template,
    skip_existing: bool,
    /// Whether arguments are names of files, which no result may replace.
    names_files: bool,
    given: Given,
    /// The folders that are there, and have no temporary files of dead processes.
    prepared: HashMap<PathBuf, FileId>,
}

/// The targets that calls of this run have. There may be millions, so that only a hash of each is kept. With a key that
/// nobody knows, no choice of names makes two of them the same; among a million names they are the same by chance once
/// in thirty million runs. A tree does not need twice its size to grow, as a table does.
#[derive(Default)]
struct Given {
    key: RandomState,
    hashes: BTreeSet<u64>,
}

impl Given {
    /// Gives the file of this name in that folder to a call. Returns whether no call had it.
    fn insert(&mut self, folder: FileId, name: Option<&OsStr>) -> bool {
        self.hashes.insert(self.key.hash_one((folder, name)))
    }
}

impl Outputs {
    /// Makes the outputs that `args` ask for, if results go to files.
    pub fn new(args: &cli::Client) -> Option<Outputs> {
        Some(Outputs {
            template: args.output.clone()?,
            skip_existing: args.skip_existing,
            names_files: args.files,
            given: Given::default(),
            prepared: HashMap::new(),
        })
    }

    /// Returns the target of the call with this argument and number, whose folder is there then. None if the call is
    /// to be skipped.
    ///
    /// # Errors
    ///
    /// [`FailureKind::CannotCreate`] if nothing can be written there, an earlier call has the same target, or it is what
    /// the call is to send.
    pub fn target(&mut self, argument: &[u8], number: u64) -> Result<Option<Target>, Failure> {
        let path = self.template.path(argument, number)?;
        let folder = folder_of(&path);
        let id = self.prepare(folder).map_err(|error| cannot_write(&path, error))?;
        // A file that an earlier call of this run has made is no reason to skip this one.
        if !self.given.insert(id, path.file_name()) {
            return Err(cannot_write(&path, SAME_OUTPUT));
        }

        match fs::metadata(&path) {
            Ok(there) if there.is_dir() => return Err(cannot_write(&path, "it is a folder")),
            Ok(there) if !there.is_file() => {
                return Err(cannot_write(&path, "it is not a regular file"));
            }
            Ok(there) if self.names_files && is_file(argument, &there) => {
                return Err(cannot_write(&path, "it is the call's own input"));
            }
            Ok(_) if self.skip_existing => return Ok(None),
            _ => {}
        }

        // Before there is anything to write.
        access(folder, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| cannot_write(&path, io::Error::from(error)))?;
        Ok(Some(Target { path }))
    }

    /// Makes a folder, unless it is there, and removes what dead processes have left in it. Returns which one it is.
    fn prepare(&mut self, folder: &Path) -> io::Result<FileId> {
        if let Some(id) = self.prepared.get(folder) {
            return Ok(*id);
        }

        fs::create_dir_all(folder)?;
        let id = file_id(&fs::metadata(folder)?);
        if let Ok(entries) = fs::read_dir(folder) {
            entries.flatten().for_each(|entry| remove_if_left(&entry));
        }
        self.prepared.insert(folder.into(), id);
        Ok(id)
    }
}

/// Returns whether an argument names the file that is `there`.
fn is_file(argument: &[u8], there: &Metadata) -> bool {
    let input = fs::metadata(OsStr::from_bytes(argument));
    input.is_ok_and(|input| file_id(&input) == file_id(there))
}

fn file_id(file: &Metadata) -> FileId {
    (file.dev(), file.ino())
}

/// Returns the folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
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

/// Where one call's result goes. No other call of this run has the same.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
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
