//! The files that results go to: where, whether they are there already, and how one is written, whole or not at all.

use crate::cli;
use crate::error::{Failure, FailureKind};
use crate::template::Template;
use log::info;
use rustix::fs::{Access, FlockOperation, OFlags, access, flock};
use rustix::io::retry_on_intr;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, DirEntry, File, Metadata, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What the name of a temporary file begins and ends with. In between is what no other has. Who writes it has a lock on
/// it, flock(2), which ends with the process, however that ends: no number of a process says as much, since others have
/// it later, or at the same time in another container.
const PREFIX: &str = ".rpc_client-";
const SUFFIX: &str = ".part";

/// Why a call has no target of its own, and what to do.
const SAME_OUTPUT: &str = "an earlier call has the same output; put {#} or {.} into --output";

/// What tells a file from all others: its device and its number there. No two names of one folder can hide it.
type FileId = (u64, u64);

/// How many folders are remembered. The others are looked through once more when their turn comes.
const MOST_FOLDERS: usize = 1_024;

/// The files of a batch.
pub struct Outputs {
    template: Template,
    skip_existing: bool,
    /// Whether arguments are names of files, which no result may replace.
    names_files: bool,
    given: Given,
    /// Folders that are there, and have no temporary files that nobody writes.
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
        let file = follow(&path)?;
        let folder = folder_of(&file);
        let id = self.prepare(folder).map_err(|error| match not_a_folder(folder) {
            Some(other) => {
                cannot_write(&path, format_args!("\"{}\" is not a folder", other.display()))
            }
            None => cannot_write(&path, error),
        })?;
        // A file that an earlier call of this run has made is no reason to skip this one.
        if !self.given.insert(id, file.file_name()) {
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
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // No file can have that name, or it is not to be seen what has it.
            Err(error) => return Err(cannot_write(&path, error)),
        }

        // Before there is anything to write.
        access(folder, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| cannot_write(&path, io::Error::from(error)))?;
        Ok(Some(Target { path, file }))
    }

    /// Makes a folder, unless it is there, and removes what clients that were killed have left in it. Returns which one it is.
    fn prepare(&mut self, folder: &Path) -> io::Result<FileId> {
        if let Some(id) = self.prepared.get(folder) {
            return Ok(*id);
        }

        fs::create_dir_all(folder)?;
        let id = file_id(&fs::metadata(folder)?);
        if let Ok(entries) = fs::read_dir(folder) {
            entries.flatten().for_each(|entry| remove_if_left(&entry));
        }
        if self.prepared.len() == MOST_FOLDERS {
            self.prepared.clear();
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

/// Returns the file that a symbolic link leads to: a file that takes the place of a link would cut it off. Any other is
/// the file itself.
fn follow(path: &Path) -> Result<PathBuf, Failure> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => fs::canonicalize(path).map_err(|error| {
            cannot_write(path, format_args!("it is a link that leads nowhere: {error}"))
        }),
        _ => Ok(path.into()),
    }
}

/// Returns the folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Returns what stands where a folder, or one that it is in, is to be made.
fn not_a_folder(folder: &Path) -> Option<&Path> {
    let there = folder.ancestors().find(|path| path.symlink_metadata().is_ok())?;
    (!there.is_dir()).then_some(there)
}

/// Removes a temporary file that nobody writes. If it cannot be removed, it harms nobody.
fn remove_if_left(entry: &DirEntry) {
    let name = entry.file_name();
    let is_temporary = name.as_bytes().starts_with(PREFIX.as_bytes())
        && name.as_bytes().ends_with(SUFFIX.as_bytes());
    if is_temporary && remove_unlocked(&entry.path()).is_ok() {
        info!("removed {}, which nobody writes any more", entry.path().display());
    }
}

/// Removes a file that nobody has a lock on.
fn remove_unlocked(path: &Path) -> io::Result<()> {
    // Of what else could be there, nothing is followed or waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    fs::remove_file(path)
}

/// Makes a temporary file in a folder, and locks it.
fn create_temporary(folder: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        let path = folder.join(format!("{PREFIX}{}{SUFFIX}", Uuid::new_v4().simple()));
        let file = File::create_new(&path)?;
        // A file system that has no locks has none for who would remove the file, either.
        let _ = retry_on_intr(|| flock(&file, FlockOperation::LockExclusive));
        // Another client may have removed it before it was locked.
        if file.metadata()?.nlink() > 0 {
            return Ok((path, file));
        }
    }
}

/// Where one call's result goes. No other call of this run has the same.
#[derive(Debug)]
pub struct Target {
    /// Its name, as the template has it.
    path: PathBuf,
    /// The same, or what it is a link to.
    file: PathBuf,
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
        let created = create_temporary(folder_of(&self.file));
        let (temporary, mut file) = created.map_err(|error| cannot_write(&self.path, error))?;
        // The lock is kept until the file has its name.
        let written = file.write_all(result).and_then(|()| fs::rename(&temporary, &self.file));
        written.map_err(|error| {
            // What it tells is why there is no file.
            let _ = fs::remove_file(&temporary);
            cannot_write(&self.path, error)
        })
    }
}

fn cannot_write(path: &Path, why: impl std::fmt::Display) -> Failure {
    let message = format!("cannot write to \"{}\": {why}", path.display());
    Failure::new(FailureKind::CannotCreate, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::thread;

    /// The folder is looked through all the time, as if other clients began.
    #[test]
    fn a_file_that_is_being_written_is_not_removed() {
        let folder = std::env::temp_dir().join(format!("outputs-{}", Uuid::new_v4()));
        fs::create_dir(&folder).unwrap();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(SeqCst) {
                    fs::read_dir(&folder)
                        .unwrap()
                        .flatten()
                        .for_each(|entry| remove_if_left(&entry));
                }
            });
            let path = folder.join("result");
            let target = Target { file: path.clone(), path };
            let stored: Result<Vec<()>, _> = (0..2000).map(|_| target.store(b"whole")).collect();
            is_over.store(true, SeqCst);
            stored.unwrap();
        });
        assert_eq!(fs::read(folder.join("result")).unwrap(), b"whole");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
