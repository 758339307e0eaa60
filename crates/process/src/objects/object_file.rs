//! The file of an object: found as the target sees it, and believed only where it is what is mapped.

use crate::objects::elf_file::{ElfFile, ElfHeader, HEAD_LEN};
use crate::objects::{Object, Role};
use std::path::Path;

/// Why an object's file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileProblem {
    /// It has none: it is the kernel's, or lies in anonymous memory.
    #[error("{0} is not mapped from a file")]
    None(String),
    /// No way led to it.
    #[error(
        "the file of {object} cannot be opened ({reason}); restart the program if it was removed or replaced"
    )]
    Unreachable {
        /// The object.
        object: String,
        /// What was tried, with the answers.
        reason: String,
    },
    /// What lies there now is not what is mapped.
    #[error(
        "{path} is not the file that is mapped as {object} ({difference}): it was replaced after the program started; restart the program"
    )]
    Differs {
        /// The object.
        object: String,
        /// The file found.
        path: String,
        /// How the two differ.
        difference: &'static str,
    },
}

impl Object<'_> {
    /// Its file: opened through the target's root or, where it was removed or replaced, through the kernel's links to
    /// what is mapped; and checked against what is mapped.
    ///
    /// # Errors
    /// [`FileProblem`] where there is no file, none that can be opened, or only a different one.
    pub fn file(&self) -> Result<&ElfFile, FileProblem> {
        self.file.get_or_init(|| self.open()).as_ref().map_err(Clone::clone)
    }

    fn open(&self) -> Result<ElfFile, FileProblem> {
        let object = || self.name().to_owned();
        let Some(mapping) = self.mapping.as_ref().filter(|m| m.inode != 0) else {
            return Err(FileProblem::None(object()));
        };
        // A path is right only where it leads to the mapped inode; the kernel's links always do. Where those need a
        // privilege that we lack, or file systems number inodes twice, the path is tried again and the content decides.
        let path = Path::new(self.path());
        let rooted = self.proc_dir.join("root").join(path.strip_prefix("/").unwrap_or(path));
        let map_file = format!("map_files/{:x}-{:x}", mapping.start.0, mapping.end.0);
        let mut ways = Vec::new();
        if !mapping.name.ends_with(" (deleted)") {
            // The kernel shows the path as it is from our root, which is not that of a target in a jail.
            ways.extend([(rooted.clone(), true), (path.to_owned(), true)]);
        }
        ways.push((self.proc_dir.join(map_file), false));
        if self.role == Role::Main {
            ways.push((self.proc_dir.join("exe"), false));
        }
        if !mapping.name.ends_with(" (deleted)") {
            ways.push((rooted, false));
        }
        let mut tried = Vec::new();
        let mut problem = None;
        for (way, same_inode) in &ways {
            let file = match ElfFile::open(way) {
                Ok(file) => file,
                Err(e) => {
                    tried.push(e.to_string());
                    continue;
                }
            };
            if *same_inode && file.inode().is_some_and(|(_, inode)| inode != mapping.inode) {
                tried.push(format!("{}: another file now", way.display()));
                continue;
            }
            match self.difference(&file) {
                None => return Ok(file),
                Some(difference) => {
                    let (object, path) = (object(), path.display().to_string());
                    problem = Some(FileProblem::Differs { object, path, difference });
                }
            }
        }
        tried.dedup();
        Err(problem
            .unwrap_or_else(|| FileProblem::Unreachable { object: object(), reason: tried.join("; ") }))
    }

    /// How `file` differs from what is mapped.
    fn difference(&self, file: &ElfFile) -> Option<&'static str> {
        if file.segments() != self.segments {
            return Some("other program headers");
        }
        let header = match self.header {
            Some(h) => Some(h),
            None => self.pages.vec(self.head_at, HEAD_LEN).ok().and_then(|b| ElfHeader::parse(&b).ok()),
        };
        if header.is_some_and(|h| h != *file.header()) {
            return Some("another ELF header");
        }
        let id = self.build_id();
        if id.is_some() && file.build_id().as_deref() != id {
            return Some("another build-id");
        }
        None
    }
}
