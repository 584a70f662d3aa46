//! What is made from each call's argument by a template as fd and GNU parallel have it: the name of the file that its
//! result goes to, its routing key. Nothing here does I/O.

use crate::error::{Failure, FailureKind};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// Stands for itself. Braces that are no placeholder do, too.
    Text(Vec<u8>),
    /// `{}`: the argument.
    Argument,
    /// `{.}`: the argument without its extension.
    WithoutExtension,
    /// `{/}`: the argument without its folders.
    Name,
    /// `{/.}`: the argument without its folders and its extension.
    Stem,
    /// `{//}`: the folder of the argument, `.` if it names none.
    Folder,
    /// `{#}`: the number of the call, from 1.
    Number,
}

/// The placeholders, as they are written.
const PLACEHOLDERS: [(&[u8], Part); 6] = [
    (b"{}", Part::Argument),
    (b"{.}", Part::WithoutExtension),
    (b"{/}", Part::Name),
    (b"{/.}", Part::Stem),
    (b"{//}", Part::Folder),
    (b"{#}", Part::Number),
];

impl Part {
    /// Returns what stands in place of the part for a call's `argument` and `number`. None if the argument has no such
    /// part: `..` has no name.
    fn fill<'a>(&'a self, argument: &'a Path, number: &'a str) -> Option<&'a [u8]> {
        let bytes = match self {
            Part::Text(text) => text,
            Part::Argument => argument.as_os_str().as_bytes(),
            Part::WithoutExtension => without_extension(argument),
            Part::Name => argument.file_name()?.as_bytes(),
            Part::Stem => argument.file_stem()?.as_bytes(),
            Part::Folder => match argument.parent()?.as_os_str().as_bytes() {
                b"" => b".",
                folder => folder,
            },
            Part::Number => number.as_bytes(),
        };
        Some(bytes)
    }
}

fn without_extension(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    match path.extension() {
        // A slash may follow it, which does not belong to a file.
        Some(extension) if bytes.ends_with(extension.as_bytes()) => {
            &bytes[..bytes.len() - extension.len() - 1]
        }
        _ => bytes,
    }
}

/// A template: text with placeholders. The empty one makes empty texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template(Vec<Part>);

impl Template {
    /// Reads a template.
    pub fn new(text: &OsStr) -> Template {
        let mut parts = Vec::new();
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let found = PLACEHOLDERS.iter().find(|(written, _)| rest.starts_with(written));
            let length = match found {
                Some((written, part)) => {
                    parts.push(part.clone());
                    written.len()
                }
                None => {
                    match parts.last_mut() {
                        Some(Part::Text(text)) => text.push(rest[0]),
                        _ => parts.push(Part::Text(vec![rest[0]])),
                    }
                    1
                }
            };
            rest = &rest[length..];
        }
        Template(parts)
    }

    /// Returns whether it has no placeholder, so that all calls have the same.
    pub fn is_constant(&self) -> bool {
        self.0.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// Returns whether it has the number of the call, so that calls with the same argument differ.
    pub fn has_number(&self) -> bool {
        self.0.contains(&Part::Number)
    }

    /// Returns the file for the result of the call with this `argument` and `number`.
    ///
    /// # Errors
    ///
    /// [`FailureKind::CannotCreate`] if that is no name for a file, or if the argument leads out of the template's
    /// folder by `..`.
    pub fn path(&self, argument: &[u8], number: u64) -> Result<PathBuf, Failure> {
        let number = number.to_string();
        let argument = Path::new(OsStr::from_bytes(argument));
        let path = self.fill(argument, &number);
        let refuse = |why: &str| {
            let name = path.as_deref().unwrap_or_default();
            let name = Path::new(OsStr::from_bytes(name)).display();
            Err(Failure::new(
                FailureKind::CannotCreate,
                format!("cannot write to \"{name}\": {why}"),
            ))
        };
        let Some(bytes) = &path else { return refuse("the argument has no name for a file") };
        // What the template itself has of them is the user's own.
        let own = self.fill(Path::new("x"), "1").map_or(0, |bytes| parents(&bytes));
        match bytes.rsplit(|byte| *byte == b'/').next() {
            _ if bytes.contains(&0) => refuse("a name has no NUL"),
            _ if parents(bytes) > own => refuse("the argument has .. in it"),
            Some(b"" | b".") => refuse("it is a folder"),
            _ => Ok(PathBuf::from(OsStr::from_bytes(bytes))),
        }
    }

    /// Returns the text for the call with this `argument` and `number`. None if the argument has no such part as the
    /// template wants.
    pub fn text(&self, argument: &[u8], number: u64) -> Option<Vec<u8>> {
        self.fill(Path::new(OsStr::from_bytes(argument)), &number.to_string())
    }

    fn fill(&self, argument: &Path, number: &str) -> Option<Vec<u8>> {
        let parts: Option<Vec<&[u8]>> =
            self.0.iter().map(|part| part.fill(argument, number)).collect();
        Some(parts?.concat())
    }
}

/// Returns how often a path leads to a parent.
fn parents(path: &[u8]) -> usize {
    path.split(|byte| *byte == b'/').filter(|name| *name == b"..").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(template: &str, argument: &[u8]) -> Result<PathBuf, String> {
        let template = Template::new(OsStr::new(template));
        template.path(argument, 7).map_err(|failure| {
            assert_eq!(failure.kind, FailureKind::CannotCreate);
            failure.message
        })
    }

    #[test]
    fn placeholders_are_those_of_fd() {
        for (template, argument, expected) in [
            ("out/{}", "a/b.tar.gz", "out/a/b.tar.gz"),
            ("out/{.}.png", "a/b.tar.gz", "out/a/b.tar.png"),
            ("out/{/}", "a/b.tar.gz", "out/b.tar.gz"),
            ("out/{/.}.png", "a/b.tar.gz", "out/b.tar.png"),
            ("{//}/small/{/}", "a/b.gz", "a/small/b.gz"),
            ("{//}/small/{/}", "b.gz", "./small/b.gz"),
            ("out/{#}-{/}", "b", "out/7-b"),
            ("{}{}", "b", "bb"),
            ("{.}", ".profile", ".profile"),
            ("{.}", "a.b/c", "a.b/c"),
            ("{.}", "a.b/", "a.b/"),
            ("out/{/.}", "-rf", "out/-rf"),
            ("out/{/}", "a b\nc", "out/a b\nc"),
            // Anything else is text.
            ("{x}{ }{", "b", "{x}{ }{"),
            ("{{}}", "b", "{b}"),
            // An absolute name stays where it is, and below the template's folder.
            ("{}.png", "/tmp/b", "/tmp/b.png"),
            ("out/{}", "/tmp/b", "out//tmp/b"),
            // Only what the argument brings is suspect.
            ("../{}", "b", "../b"),
            ("out/{}", "a..b/...", "out/a..b/..."),
            ("out/{}", "...", "out/..."),
            ("out/{}", "..x/b", "out/..x/b"),
            ("out/{.}.png", "..x/...", "out/..x/...png"),
            ("out/{/.}.png", "..x", "out/..png"),
        ] {
            let expected = match (template, argument) {
                ("{.}", "a.b/") => Err("cannot write to \"a.b/\": it is a folder".into()),
                _ => Ok(expected.into()),
            };
            assert_eq!(path(template, argument.as_bytes()), expected, "{template} of {argument}");
        }
        let latin = b"caf\xe9.txt";
        let kept = PathBuf::from(OsStr::from_bytes(b"out/caf\xe9.png"));
        assert_eq!(path("out/{.}.png", latin), Ok(kept));
    }

    #[test]
    fn an_argument_leads_nowhere_else() {
        for (template, argument) in [
            ("out/{}", "../b"),
            ("out/{}", "a/../../b"),
            ("out/{}", ".."),
            ("out/{//}/x", "../b"),
            ("out/{}./b", "."),
            ("../out/{}", "../b"),
            ("out/{.}", "../b.c"),
        ] {
            let refused = path(template, argument.as_bytes());
            let told = refused.expect_err(template);
            assert!(
                told.ends_with("the argument has .. in it"),
                "{template} of {argument}: {told}"
            );
        }
    }

    #[test]
    fn what_names_no_file_is_refused() {
        for (template, argument, why) in [
            ("out/{}", &b""[..], "it is a folder"),
            ("out/{}", b"a/", "it is a folder"),
            ("out/{}", b".", "it is a folder"),
            ("out/{/}", b"..", "the argument has no name for a file"),
            ("out/{/}", b"/", "the argument has no name for a file"),
            ("out/{//}", b"", "the argument has no name for a file"),
            ("out/{}", b"a\0b", "a name has no NUL"),
        ] {
            let told = path(template, argument).expect_err(template);
            assert!(told.ends_with(why), "{template}: {told}");
        }
    }

    #[test]
    fn only_a_template_without_placeholders_is_the_same_for_all() {
        for (template, is_constant) in
            [("out", true), ("{x}", true), ("{#}", false), ("a{.}", false)]
        {
            assert_eq!(
                Template::new(OsStr::new(template)).is_constant(),
                is_constant,
                "{template}"
            );
        }
    }
}
