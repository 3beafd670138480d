//! Reading model files: mapped or in memory, always bounded by the size that the file system reports.

use crate::error::{EngineError, Result};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Configuration files larger than this are refused; real ones have a few kilobytes.
pub(crate) const CONFIG_LIMIT: usize = 16 << 20;
/// Weight indices larger than this are refused; the largest published ones have a few megabytes.
pub(crate) const INDEX_LIMIT: usize = 64 << 20;

/// A read-only file: mapped from disk, or bytes held in memory under a name.
///
/// A mapped file must not be truncated while it is in use: the operating system then ends the process. Replace model
/// files by renaming, as download tools do.
#[derive(Debug)]
pub struct FileBytes {
    path: PathBuf,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Mapped(memmap2::Mmap),
    Memory(Cow<'static, [u8]>),
}

impl FileBytes {
    /// Maps a regular file. Anything else (directory, pipe, device) is refused before it is opened.
    pub fn open(path: &Path) -> Result<Self> {
        let refuse = |reason: String| {
            EngineError::model(path, reason, "check that the file exists, is a regular file and may be read")
        };
        let metadata = std::fs::metadata(path).map_err(|e| refuse(format!("cannot be read: {e}")))?;
        if !metadata.is_file() {
            return Err(refuse("is not a regular file".into()));
        }
        if metadata.len() == 0 {
            return Ok(Self::memory(path, Cow::Borrowed(&[])));
        }
        let file = File::open(path).map_err(|e| refuse(format!("cannot be opened: {e}")))?;
        // SAFETY: the mapping is read-only and private to this value; bytes are only read, never assumed to be valid
        // beyond being bytes. Truncation by another process is documented on the type.
        let map =
            unsafe { memmap2::Mmap::map(&file) }.map_err(|e| refuse(format!("cannot be mapped: {e}")))?;
        Ok(Self { path: path.into(), data: Data::Mapped(map) })
    }

    /// Bytes in memory, under the name that errors should show.
    pub fn memory(path: impl Into<PathBuf>, bytes: Cow<'static, [u8]>) -> Self {
        Self { path: path.into(), data: Data::Memory(bytes) }
    }

    /// Where the file lies, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last component of the path.
    pub fn name(&self) -> String {
        self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Mapped(map) => map,
            Data::Memory(bytes) => bytes,
        }
    }

    /// The contents, refused when they are longer than `limit` bytes.
    pub(crate) fn bounded(&self, limit: usize) -> Result<&[u8]> {
        let bytes = self.bytes();
        if bytes.len() > limit {
            return Err(EngineError::model(
                &self.path,
                format!("has {} bytes, more than the {limit} that such a file may have", bytes.len()),
                "this is not the kind of file that its name says; download it again",
            ));
        }
        Ok(bytes)
    }
}

/// A model directory: on disk, or a set of named files in memory.
#[derive(Debug)]
pub(crate) enum Directory {
    /// On disk.
    Disk(PathBuf),
    /// In memory, shown as `label` in errors.
    Memory { label: PathBuf, files: BTreeMap<String, Arc<FileBytes>> },
}

impl Directory {
    /// In-memory files by name.
    pub(crate) fn memory(label: &str, files: Vec<(String, Cow<'static, [u8]>)>) -> Self {
        let label = PathBuf::from(label);
        let files = files
            .into_iter()
            .map(|(name, bytes)| {
                let file = Arc::new(FileBytes::memory(label.join(&name), bytes));
                (name, file)
            })
            .collect();
        Self::Memory { label, files }
    }

    /// The path that errors show for a file of this directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        match self {
            Self::Disk(path) => path,
            Self::Memory { label, .. } => label,
        }
    }

    /// Names of all entries, ascending. Names that are not UTF-8 are left out: no file that is looked for has one.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        match self {
            Self::Memory { files, .. } => Ok(files.keys().cloned().collect()),
            Self::Disk(path) => {
                let refuse = |e: std::io::Error| {
                    EngineError::model(
                        path,
                        format!("cannot be listed: {e}"),
                        "check the path and its permissions",
                    )
                };
                let mut names = Vec::new();
                for entry in std::fs::read_dir(path).map_err(refuse)? {
                    names.extend(entry.map_err(refuse)?.file_name().into_string());
                }
                names.sort();
                Ok(names)
            }
        }
    }

    /// Opens a file of the directory; `None` when there is none.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Arc<FileBytes>>> {
        match self {
            Self::Memory { files, .. } => Ok(files.get(name).cloned()),
            Self::Disk(path) => {
                let path = path.join(name);
                match std::fs::symlink_metadata(&path) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    _ => FileBytes::open(&path).map(|file| Some(Arc::new(file))),
                }
            }
        }
    }
}
