//! ZMTP 3: just the framing that two sockets need who trust each other, with a bound on every message. (The library
//! for it allocates whatever length a peer announces.)

use std::io::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;
/// Longest command frame.
const MAX_COMMAND: u64 = 4096;
/// Bytes of an oversized message that are kept: enough for its header and number.
const HEAD: u64 = 32;
/// An oversized message is read over if it is at most so many times too long; else the connection is given up.
const PASSABLE: u64 = 16;

/// What a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// A message of one frame.
    Message(Vec<u8>),
    /// A message of several frames; the first of them.
    Several(Vec<u8>),
    /// A message longer than allowed; its beginning.
    Oversized(Vec<u8>),
    /// A ping, with the context to send back.
    Ping(Vec<u8>),
}

fn bad(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidData, reason.to_owned())
}

/// Greets the peer as a socket of type `own` and checks that it greets as one of ZMTP 3 without security.
pub(super) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, own: &str) -> Result<()> {
    let mut ours = [0; 64];
    (ours[0], ours[9], ours[10]) = (0xff, 0x7f, 3);
    ours[12..16].copy_from_slice(b"NULL");
    stream.write_all(&ours).await?;
    let mut theirs = [0; 64];
    stream.read_exact(&mut theirs).await?;
    if theirs[0] != 0xff || theirs[9] & 1 != 1 || theirs[10] < 3 {
        return Err(bad("the peer does not speak ZMTP 3"));
    }
    if &theirs[12..17] != b"NULL\0" {
        return Err(bad("the peer wants a security mechanism"));
    }
    let mut ready = b"\x05READY\x0bSocket-Type".to_vec();
    ready.extend((own.len() as u32).to_be_bytes());
    ready.extend(own.as_bytes());
    ready.extend(b"\x08Identity\0\0\0\0");
    write_frame(stream, COMMAND, &ready).await?;
    let (flags, len) = frame_head(stream).await?;
    if flags & COMMAND == 0 || len > MAX_COMMAND {
        return Err(bad("the peer's greeting does not end with READY"));
    }
    let body = take(stream, len).await?;
    if body.starts_with(b"\x05READY") { Ok(()) } else { Err(bad("the peer is not ready")) }
}

async fn frame_head<R: AsyncRead + Unpin>(reader: &mut R) -> Result<(u8, u64)> {
    let flags = reader.read_u8().await?;
    if flags & !(MORE | LONG | COMMAND) != 0 {
        return Err(bad("a frame with unknown flags"));
    }
    let len = if flags & LONG == 0 { u64::from(reader.read_u8().await?) } else { reader.read_u64().await? };
    Ok((flags, len))
}

/// Reads exactly `len` bytes. Memory grows with what arrives, not with what was announced.
async fn take<R: AsyncRead + Unpin>(reader: &mut R, len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(len).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

async fn skip<R: AsyncRead + Unpin>(reader: &mut R, len: u64) -> Result<()> {
    let skipped = tokio::io::copy(&mut reader.take(len), &mut tokio::io::sink()).await?;
    if skipped == len { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Reads the next message of at most `max` bytes over all its frames.
pub(super) async fn read<R: AsyncRead + Unpin>(reader: &mut R, max: usize) -> Result<Incoming> {
    let max = max as u64;
    let (mut first, mut frames, mut total, mut oversized) = (Vec::new(), 0u64, 0u64, false);
    loop {
        let (flags, len) = frame_head(reader).await?;
        if flags & COMMAND != 0 {
            match command(reader, len).await? {
                Some(ping) => return Ok(ping),
                None => continue,
            }
        }
        total = total.saturating_add(len);
        if total > max.saturating_mul(PASSABLE) {
            return Err(bad("a message far beyond the allowed length"));
        }
        oversized |= total > max;
        let keep = match (frames, oversized) {
            (0, false) => len,
            (0, true) => len.min(HEAD),
            _ => 0,
        };
        if frames == 0 {
            first = take(reader, keep).await?;
        }
        skip(reader, len - keep).await?;
        frames += 1;
        if flags & MORE == 0 {
            break;
        }
    }
    Ok(match (oversized, frames) {
        (true, _) => Incoming::Oversized(first),
        (false, 1) => Incoming::Message(first),
        (false, _) => Incoming::Several(first),
    })
}

/// Reads a command; pings are to be answered, all others are of no consequence here.
async fn command<R: AsyncRead + Unpin>(reader: &mut R, len: u64) -> Result<Option<Incoming>> {
    if len > MAX_COMMAND {
        return Err(bad("a command that is too long"));
    }
    let body = take(reader, len).await?;
    if body.starts_with(b"\x05ERROR") {
        return Err(bad("the peer reports an error"));
    }
    // Name, two bytes of time to live, context.
    Ok(body.strip_prefix(b"\x04PING").and_then(|rest| rest.get(2..)).map(|c| Incoming::Ping(c.to_vec())))
}

async fn write_frame<W: AsyncWrite + Unpin>(writer: &mut W, flags: u8, body: &[u8]) -> Result<()> {
    let mut head = Vec::with_capacity(9);
    match u8::try_from(body.len()) {
        Ok(len) => head.extend([flags, len]),
        Err(_) => {
            head.push(flags | LONG);
            head.extend((body.len() as u64).to_be_bytes());
        }
    }
    writer.write_all(&head).await?;
    writer.write_all(body).await
}

/// Writes a message of one frame. Does not flush.
pub(super) async fn write<W: AsyncWrite + Unpin>(writer: &mut W, message: &[u8]) -> Result<()> {
    write_frame(writer, 0, message).await
}

/// Answers a ping. Does not flush.
pub(super) async fn pong<W: AsyncWrite + Unpin>(writer: &mut W, context: &[u8]) -> Result<()> {
    write_frame(writer, COMMAND, &[b"\x04PONG", context].concat()).await
}
