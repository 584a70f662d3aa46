//! Whether a file is something that the system can execute (execve(2)), looked at before it is needed.
//!
//! What is wrong with a file shows in its first bytes, and the system tells it only as "No such file or directory",
//! though the file is there, or as "Exec format error".

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How much of a file the system looks at before it knows what the file is, in bytes (BINPRM_BUF_SIZE of Linux).
const SYSTEMS_HEAD: usize = 256;

/// How much of a file is looked at here: enough for the name of a program's loader.
const HEAD: u64 = 4096;

/// How often an interpreter may be a script itself: what Linux allows.
const MOST_INTERPRETERS: usize = 5;

/// Checks the file at `path`, which may be executed. The error says what is wrong with it.
pub fn check(path: &Path) -> Result<(), String> {
    check_nested(path, MOST_INTERPRETERS)
}

fn check_nested(path: &Path, left: usize) -> Result<(), String> {
    // What may be executed need not be readable.
    let Some(head) = head(path) else { return Ok(()) };
    if let Some(line) = head.strip_prefix(b"#!") {
        return check_script(line, left);
    }
    if is_handled_elsewhere(path, &head) {
        return Ok(());
    }
    if head.is_empty() {
        return Err("is an empty file".into());
    }
    if !head.contains(&0) {
        return Err(
            "has no line such as #!/bin/sh at its beginning, so that the system cannot execute it"
                .into(),
        );
    }

    if !is_for_this_system(&head) {
        return Err("is not a program for this system (file(1) says for which)".into());
    }
    match loader(&head) {
        Some(loader) if !Path::new(&loader).exists() => Err(format!(
            "is a program whose loader {loader} is not there: it was made for a system with another C library"
        )),
        _ => Ok(()),
    }
}

/// Checks a script by what follows `#!`.
fn check_script(head: &[u8], left: usize) -> Result<(), String> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let whole = line;
    let line = String::from_utf8_lossy(line);
    let line = line.trim_matches([' ', '\t']);
    if line.ends_with('\r') {
        let line = line.trim_end();
        return Err(format!(
            "is a script whose line #!{line} ends with a carriage return, which the system takes for a part of its \
             interpreter's name: remove them (sed -i 's/\\r$//')"
        ));
    }

    let (interpreter, argument) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    if interpreter.is_empty() {
        return Err("is a script whose first line, #!, names no interpreter".into());
    }
    let missing = |what: &str| format!("is a script, and its interpreter {what} is not there");
    let Some(path) = interpreter_path(whole) else {
        return Err(format!(
            "is a script, and its interpreter {interpreter} has a longer name than the system takes (256 bytes)"
        ));
    };
    let is_there =
        path.is_file() && which::which(fs::canonicalize(path).unwrap_or_default()).is_ok();
    if !is_there {
        return Err(missing(interpreter));
    }
    let name = argument.trim_matches([' ', '\t']);

    // env(1) looks for the interpreter in PATH. With options or variables, it is too much to tell.
    let is_looked_for = path.ends_with("env")
        && !name.is_empty()
        && !name.starts_with('-')
        && !name.contains(['=', ' ']);
    if is_looked_for && which::which(name).is_err() {
        return Err(missing(&format!("{name}, which {interpreter} looks for in PATH,")));
    }
    match left {
        0 => Err("is a script, and so are too many of its interpreters".into()),
        _ => check_nested(path, left - 1)
            .map_err(|reason| format!("is a script, and its interpreter {interpreter} {reason}")),
    }
}

/// Returns the interpreter that the line of a script names, which need not be text. None: its name does not end in what the
/// system looks at.
fn interpreter_path(line: &[u8]) -> Option<&Path> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = line.iter().take_while(|byte| is_blank(byte)).count();
    let name = line[start..].split(is_blank).next().unwrap_or_default();
    let end = b"#!".len() + start + name.len();
    (end < SYSTEMS_HEAD).then(|| Path::new(OsStr::from_bytes(name)))
}

/// Returns the beginning of a file. None if it cannot be read.
fn head(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Returns whether the system may have another program execute such a file (binfmt_misc(5) of Linux): by its name's
/// end, or, a file that is not text, by its first bytes.
fn is_handled_elsewhere(path: &Path, head: &[u8]) -> bool {
    let Ok(handlers) = fs::read_dir("/proc/sys/fs/binfmt_misc") else { return false };
    let handlers = handlers.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let mut handlers = handlers.filter(|handler| handler.contains("\ninterpreter "));
    handlers.any(|handler| {
        let extension = handler.lines().find_map(|line| line.strip_prefix("extension ."));
        match extension {
            Some(extension) => path.extension().is_some_and(|own| own == extension),
            None => head.contains(&0),
        }
    })
}

/// Returns whether a file that is not text is one of this system's programs: on Linux, an ELF file for the same
/// processor, or for its smaller brother (elf(5): the class, the order of bytes and the machine).
#[cfg(target_os = "linux")]
fn is_for_this_system(head: &[u8]) -> bool {
    const EM_386: u16 = 3;
    const EM_ARM: u16 = 40;
    const EM_X86_64: u16 = 62;
    const EM_AARCH64: u16 = 183;

    let machine = |head: &[u8]| Some(u16::from_ne_bytes(head.get(18..20)?.try_into().ok()?));
    if !head.starts_with(b"\x7fELF") {
        return false;
    }
    let Some(own) = self::head(Path::new("/proc/self/exe")) else { return true };
    if head.get(5) != own.get(5) {
        return false;
    }
    match (machine(&own), machine(head)) {
        (Some(EM_X86_64), Some(EM_386)) | (Some(EM_AARCH64), Some(EM_ARM)) => true,
        (own, file) => own == file,
    }
}

#[cfg(not(target_os = "linux"))]
fn is_for_this_system(_: &[u8]) -> bool {
    true
}

/// Returns the program that loads the libraries of an ELF file (elf(5), PT_INTERP), as far as `head` has it.
fn loader(head: &[u8]) -> Option<String> {
    const PT_INTERP: usize = 3;

    // In files of 32 and of 64 bits: the places of the table of program headers, of the length of each and of their
    // number; in each, the places of the offset and of the length of what it tells of; and how long such numbers are.
    let (table, entry_length, entries, offset, length, width) = match head.get(..5)? {
        [0x7f, b'E', b'L', b'F', 1] => (28, 42, 44, 4, 16, 4),
        [0x7f, b'E', b'L', b'F', 2] => (32, 54, 56, 8, 32, 8),
        _ => return None,
    };

    let number = |at: usize, width: usize| -> Option<usize> {
        let mut bytes = head.get(at..at.checked_add(width)?)?.to_vec();
        if cfg!(target_endian = "little") {
            bytes.reverse();
        }
        bytes
            .iter()
            .try_fold(0_usize, |number, byte| number.checked_mul(256)?.checked_add((*byte).into()))
    };

    let (first, entry_length) = (number(table, width)?, number(entry_length, 2)?);
    for index in 0..number(entries, 2)? {
        let entry = first.checked_add(index.checked_mul(entry_length)?)?;
        if number(entry, 4)? == PT_INTERP {
            let start = number(entry.checked_add(offset)?, width)?;
            let end = start.checked_add(number(entry.checked_add(length)?, width)?)?;
            let name = String::from_utf8_lossy(head.get(start..end)?);
            return Some(name.trim_end_matches('\0').into());
        }
    }

    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_can_execute() {
        let own = std::env::current_exe().unwrap();
        for path in [Path::new("/bin/sh"), Path::new("/usr/bin/env"), &own] {
            assert_eq!(check(path), Ok(()), "{path:?}");
        }
        for line in ["/bin/sh\n", " /bin/sh -e\nx", "/usr/bin/env sh\n", "/usr/bin/env -S sh -e\n"]
        {
            assert_eq!(check_script(line.as_bytes(), 1), Ok(()), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_script_is_told() {
        for (line, reason) in [
            ("/no/such/sh\n", "is a script, and its interpreter /no/such/sh is not there"),
            ("/etc/passwd\n", "is a script, and its interpreter /etc/passwd is not there"),
            ("\n", "is a script whose first line, #!, names no interpreter"),
            (
                "/usr/bin/env no-such-python3\n",
                "is a script, and its interpreter no-such-python3, which /usr/bin/env looks for in PATH, is not there",
            ),
            (
                "/bin/sh\r\n",
                "is a script whose line #!/bin/sh ends with a carriage return, which the system takes for a part of \
                 its interpreter's name: remove them (sed -i 's/\\r$//')",
            ),
        ] {
            assert_eq!(check_script(line.as_bytes(), 1), Err(reason.into()), "{line}");
        }
    }

    #[test]
    fn a_script_names_any_path_that_is_short_enough() {
        let folder = std::env::temp_dir().join(format!("fib-rpc-test-{}", uuid::Uuid::new_v4()));
        for (name, is_taken) in [(&b"caf\xe9"[..], true), (&[b'x'; 250], false)] {
            let interpreter = folder.join(OsStr::from_bytes(name)).join("sh");
            fs::create_dir_all(interpreter.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink("/bin/sh", &interpreter).unwrap();
            let line = [interpreter.as_os_str().as_bytes(), b" -e\n"].concat();
            let checked = check_script(&line, 1);
            assert_eq!(checked.is_ok(), is_taken, "{checked:?}");
        }
        fs::remove_dir_all(folder).unwrap();
        // What is cut off of the options does no harm.
        let options = [b"/bin/sh ", &[b'-'; 300][..], b"\n"].concat();
        assert_eq!(check_script(&options, 1), Ok(()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_program_whose_loader_is_not_there() {
        let own = head(&std::env::current_exe().unwrap()).unwrap();
        // One that is linked statically has none.
        let Some(found) = loader(&own) else { return };
        assert!(Path::new(&found).is_absolute() && Path::new(&found).exists(), "{found}");
        let mut other = own.clone();
        let at = own.windows(found.len()).position(|part| part == found.as_bytes()).unwrap();
        other[at + 1..at + 4].copy_from_slice(b"no/");
        let path = std::env::temp_dir().join(format!("fib-rpc-test-{}", uuid::Uuid::new_v4()));
        fs::write(&path, &other).unwrap();
        let reason = check(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
        assert!(reason.starts_with("is a program whose loader /no/"), "{reason}");
        // Whatever the file is, it is looked at to no harm.
        for end in 0..own.len() {
            let _ = loader(&own[..end]);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_program_for_another_processor() {
        let own = head(Path::new("/proc/self/exe")).unwrap();
        assert!(is_for_this_system(&own));
        let mut other = own.clone();
        // EM_VAX
        other[18..20].copy_from_slice(&75_u16.to_ne_bytes());
        assert!(!is_for_this_system(&other));
        assert!(!is_for_this_system(b"MZ\0\0"));
    }
}
