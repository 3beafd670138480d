//! The GGUF container, versions 2 and 3, little-endian. Every count and length is checked against the bytes that are
//! left before anything is allocated or read.

use super::metadata::{Array, Metadata, Value};
use super::types::Encoding;
use crate::error::{EngineError, Result};
use crate::model::files::FileBytes;
use crate::model::stored::{Entry, Table};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The first four bytes of every GGUF file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// Bytes of the shortest key-value pair: length of the key, type, one byte.
const MIN_PAIR: usize = 8 + 4 + 1;
/// Bytes of the shortest tensor description: length of the name, number of dimensions, one dimension, type, offset.
const MIN_TENSOR: usize = 8 + 4 + 8 + 4 + 8;
/// Longer keys and tensor names are refused; the format allows 65535 bytes for keys.
const NAME_LIMIT: usize = 65_535;
const DAMAGED: &str = "the download is incomplete or damaged; download the file again";

/// Reads metadata and tensor descriptions.
pub(crate) fn read(file: &Arc<FileBytes>) -> Result<(Metadata, Table)> {
    let mut cursor = Cursor { bytes: file.bytes(), at: 0, file: file.path() };
    let (tensors, pairs) = header(&mut cursor)?;
    let mut values = BTreeMap::new();
    for _ in 0..pairs {
        let key = cursor.text("a key", NAME_LIMIT)?;
        let kind = cursor.u32("the type of a value")?;
        let value = cursor.value(&key, kind)?;
        if values.insert(key.clone(), value).is_some() {
            return Err(cursor.refuse(format!("key `{key}` is given twice")));
        }
    }
    let metadata = Metadata::new(file.path(), values);
    let alignment = match metadata.unsigned("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT) {
        n @ 8..=65_536 if n.is_power_of_two() => n as usize,
        n => {
            let reason = format!("is {n}, not a power of two from 8 to 65536");
            return Err(metadata.refuse("general.alignment", reason, DAMAGED));
        }
    };
    let mut infos = Vec::with_capacity(tensors);
    for _ in 0..tensors {
        infos.push(tensor_info(&mut cursor)?);
    }
    let table = place(file, infos, cursor.at, alignment)?;
    Ok((metadata, table))
}

/// Magic, version and counts: number of tensors and of key-value pairs.
fn header(cursor: &mut Cursor<'_>) -> Result<(usize, usize)> {
    if cursor.take(4, "the magic number")? != MAGIC {
        return Err(cursor.refuse("does not start with GGUF".into()));
    }
    match cursor.u32("the version")? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err(cursor.refuse("is big-endian, which is not supported".into()));
        }
        version => return Err(cursor.refuse(format!("has GGUF version {version}; supported are 2 and 3"))),
    }
    let tensors = cursor.u64("the number of tensors")?;
    let pairs = cursor.u64("the number of key-value pairs")?;
    let pairs = cursor.fits(pairs, MIN_PAIR, "key-value pairs")?;
    Ok((cursor.fits(tensors, MIN_TENSOR, "tensors")?, pairs))
}

/// A tensor's description before its place in the file is known to exist.
struct Info {
    name: String,
    shape: Vec<usize>,
    encoding: Encoding,
    offset: u64,
}

fn tensor_info(cursor: &mut Cursor<'_>) -> Result<Info> {
    let name = cursor.text("a tensor's name", NAME_LIMIT)?;
    let refuse = |cursor: &Cursor<'_>, reason: String, hint: &str| {
        Err(EngineError::tensor(cursor.file, &name, reason, hint))
    };
    let dimensions = cursor.u32("a tensor's number of dimensions")?;
    if !(1..=4).contains(&dimensions) {
        return refuse(cursor, format!("has {dimensions} dimensions; 1 to 4 are legal"), DAMAGED);
    }
    let mut shape = Vec::with_capacity(4);
    for _ in 0..dimensions {
        match cursor.u64("a tensor's dimension")? {
            n @ 1..=0x7fff_ffff => shape.push(n as usize),
            n => {
                return refuse(cursor, format!("has a dimension of {n}; 1 to 2147483647 are legal"), DAMAGED);
            }
        }
    }
    // GGUF writes the innermost dimension first
    shape.reverse();
    let encoding = match Encoding::from_ggml(cursor.u32("a tensor's type")?) {
        Ok(encoding) => encoding,
        Err(kind) => {
            let reason = format!("is stored as {kind}, which is not supported");
            let hint = "supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q4_K, Q5_K and Q6_K";
            return refuse(cursor, reason, hint);
        }
    };
    let offset = cursor.u64("a tensor's offset")?;
    Ok(Info { name, shape, encoding, offset })
}

/// Checks that every tensor lies in the data section, aligned, and that no two overlap.
fn place(file: &Arc<FileBytes>, infos: Vec<Info>, header_end: usize, alignment: usize) -> Result<Table> {
    let start = header_end.next_multiple_of(alignment);
    let len = file.bytes().len();
    let mut table = Table::new();
    let mut ranges = Vec::with_capacity(infos.len());
    for Info { name, shape, encoding, offset } in infos {
        let refuse = |reason: String| Err(EngineError::tensor(file.path(), &name, reason, DAMAGED));
        if offset % alignment as u64 != 0 {
            return refuse(format!("starts at offset {offset}, which is not a multiple of {alignment}"));
        }
        let Some(size) = byte_size(&shape, encoding) else {
            return refuse(format!("has shape {shape:?}, which is not a whole number of blocks in memory"));
        };
        let lo = usize::try_from(offset).ok().and_then(|o| o.checked_add(start));
        let range = lo.and_then(|lo| Some(lo..lo.checked_add(size)?));
        let Some(range) = range.filter(|r| r.end <= len) else {
            return refuse(format!(
                "lies outside the file: offset {offset}, {size} bytes, in a file of {len} bytes"
            ));
        };
        ranges.push((range.start, range.end, name.clone()));
        let entry = Entry { file: file.clone(), encoding, shape, range };
        if table.insert(name.clone(), entry).is_some() {
            return refuse("is given twice".into());
        }
    }
    ranges.sort();
    if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        return Err(EngineError::tensor(
            file.path(),
            &pair[1].2,
            format!("overlaps `{}`", pair[0].2),
            DAMAGED,
        ));
    }
    let end = ranges.last().map_or(start, |last| last.1);
    if len > end.next_multiple_of(alignment) {
        let reason = format!("has {} bytes after its last tensor", len - end);
        return Err(EngineError::model(file.path(), reason, DAMAGED));
    }
    Ok(table)
}

fn byte_size(shape: &[usize], encoding: Encoding) -> Option<usize> {
    let (elements, bytes) = encoding.block();
    let (cols, outer) = shape.split_last()?;
    if cols % elements != 0 {
        return None;
    }
    outer.iter().try_fold((cols / elements).checked_mul(bytes)?, |size, n| size.checked_mul(*n))
}

/// A place in the file; every read is checked.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file: &'a Path,
}

impl<'a> Cursor<'a> {
    fn refuse(&self, reason: String) -> EngineError {
        EngineError::model(self.file, reason, DAMAGED)
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let bytes = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        match bytes {
            Some(bytes) => {
                self.at += n;
                Ok(bytes)
            }
            None => Err(self.refuse(format!(
                "ends at byte {} inside {what}, which needs {n} bytes from byte {} on",
                self.bytes.len(),
                self.at
            ))),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Refuses a count whose smallest encoding would not fit into what is left of the file.
    fn fits(&self, count: u64, each: usize, what: &str) -> Result<usize> {
        let left = self.bytes.len().saturating_sub(self.at);
        match usize::try_from(count) {
            Ok(n) if n <= left / each.max(1) => Ok(n),
            _ => Err(self
                .refuse(format!("announces {count} {what}, more than its {left} remaining bytes can hold"))),
        }
    }

    fn text(&mut self, what: &str, limit: usize) -> Result<String> {
        let len = self.u64(what)?;
        let len = usize::try_from(len).ok().filter(|n| *n <= limit).ok_or_else(|| {
            self.refuse(format!("has {what} of {len} bytes, more than the {limit} that are allowed"))
        })?;
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.refuse(format!("has {what} that is not UTF-8, at byte {}", self.at - len))),
        }
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value> {
        let what = &format!("the value of key `{key}`");
        Ok(match kind {
            7 => Value::Bool(self.bool(what)?),
            8 => Value::Text(self.text(what, usize::MAX)?),
            9 => Value::Array(self.list(what)?),
            0 | 2 | 4 | 10 => Value::Unsigned(self.unsigned(kind, what)?),
            1 | 3 | 5 | 11 => Value::Signed(self.signed(kind, what)?),
            6 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            other => return Err(self.refuse(format!("key `{key}` has the unknown type {other}"))),
        })
    }

    fn list(&mut self, what: &str) -> Result<Array> {
        let kind = self.u32(what)?;
        let count = self.u64(what)?;
        let Some(each) = min_size(kind) else {
            return Err(self.refuse(format!("has {what} as a list of type {kind}, which is not supported")));
        };
        let n = self.fits(count, each, &format!("elements in {what}"))?;
        Ok(match kind {
            7 => Array::Bool(self.many(n, |c| c.bool(what))?),
            8 => Array::Text(self.many(n, |c| c.text(what, usize::MAX))?),
            0 | 2 | 4 | 10 => Array::Unsigned(self.many(n, |c| c.unsigned(kind, what))?),
            1 | 3 | 5 | 11 => Array::Signed(self.many(n, |c| c.signed(kind, what))?),
            6 => Array::F32(self.many(n, |c| Ok(f32::from_le_bytes(c.array(what)?)))?),
            _ => Array::F64(self.many(n, |c| Ok(f64::from_le_bytes(c.array(what)?)))?),
        })
    }

    /// Reads `n` elements; `n` has been checked against the bytes that are left.
    fn many<T>(&mut self, n: usize, mut read: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push(read(self)?);
        }
        Ok(items)
    }

    fn bool(&mut self, what: &str) -> Result<bool> {
        match self.array(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.refuse(format!("has {what} as the truth value {other}; 0 and 1 are legal"))),
        }
    }

    fn unsigned(&mut self, kind: u32, what: &str) -> Result<u64> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array(what)?).into(),
            2 => u16::from_le_bytes(self.array(what)?).into(),
            4 => u32::from_le_bytes(self.array(what)?).into(),
            _ => u64::from_le_bytes(self.array(what)?),
        })
    }

    fn signed(&mut self, kind: u32, what: &str) -> Result<i64> {
        Ok(match kind {
            1 => i8::from_le_bytes(self.array(what)?).into(),
            3 => i16::from_le_bytes(self.array(what)?).into(),
            5 => i32::from_le_bytes(self.array(what)?).into(),
            _ => i64::from_le_bytes(self.array(what)?),
        })
    }
}

/// Bytes of the smallest element of a type; `None` for unknown types and for lists of lists.
fn min_size(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        8 | 10..=12 => Some(8),
        _ => None,
    }
}
