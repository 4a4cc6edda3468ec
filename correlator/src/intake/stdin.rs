//! Audit events on standard input, or lines of SPO's enricher: what the container `audit-logs` of an API server's pod prints, piped
//! (`oc logs -f kube-apiserver-… -c audit-logs | seclog-correlator serve --audit-stdin …`).
//!
//! What holds: a line counts when its end is there, or when the input ends. What the journal cannot take is offered again, and
//! nothing is read meanwhile: the pipe holds the sender up. The input has no positions: what is sent again is known by its
//! content. With `oc logs --timestamps` the time before each line is left out.

use super::lines::Lines;
use super::sink::{Kind, Sink};
use super::trail::TrailError;
use memchr::{memchr, memchr_iter};
use std::borrow::Cow;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

const PIECE: usize = 256 << 10;
/// How long to wait before what could not be taken is offered again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum StdinError {
    #[error("standard input cannot be read: {0}")]
    Read(std::io::Error),
    #[error(transparent)]
    Trail(#[from] TrailError),
}

/// Reads to the end of the input.
pub async fn follow(input: impl AsyncRead + Unpin, kind: Kind) -> Result<(), StdinError> {
    let mut intake = LineIntake { sink: kind.of_stdin(), lines: Lines::default() };
    let mut input = input;
    let mut piece = vec![0; PIECE];
    loop {
        let read = input.read(&mut piece).await.map_err(StdinError::Read)?;
        if read == 0 {
            break;
        }
        intake.push(&piece[..read]).await?;
    }
    intake.end().await?;
    Ok(())
}

/// Lines of a container's log that come in pieces, perhaps each behind the time at which it was printed.
#[derive(Debug)]
pub(super) struct LineIntake {
    pub(super) sink: Sink,
    pub(super) lines: Lines,
}

impl LineIntake {
    /// The time before the last line that was taken, where lines have one.
    pub(super) async fn push(&mut self, piece: &[u8]) -> Result<Option<String>, TrailError> {
        self.lines.push(piece);
        let too_long = self.lines.too_long();
        if too_long > 0 {
            self.sink.lost("lines longer than 64 MiB", Some(too_long)).await?;
        }
        let bytes = self.lines.whole().len();
        self.take(bytes).await
    }

    /// Nothing more comes: a last line without its end counts.
    pub(super) async fn end(&mut self) -> Result<Option<String>, TrailError> {
        let bytes = self.lines.rest().len();
        self.take(bytes).await
    }

    /// A connection broke off within a line, which comes again whole.
    pub(super) fn forget_rest(&mut self) {
        self.lines = Lines::default();
    }

    async fn take(&mut self, bytes: usize) -> Result<Option<String>, TrailError> {
        if bytes == 0 {
            return Ok(None);
        }
        loop {
            let (text, stamp) = without_stamps(&self.lines.rest()[..bytes]);
            match self.sink.take(&text, |_| None).await {
                Ok(stage_time) => {
                    self.sink.is_read_until(stage_time);
                    self.lines.taken(bytes);
                    return Ok(stamp);
                }
                Err(error) if error.is_closed() => return Err(error),
                Err(error) => {
                    self.sink.failed();
                    tracing::warn!(source = self.sink.source(), "{error}; tried again");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
    }
}

/// Lines without the times before them, and the last of these.
fn without_stamps(text: &[u8]) -> (Cow<'_, [u8]>, Option<String>) {
    let begins = std::iter::once(0).chain(memchr_iter(b'\n', text).map(|end| end + 1));
    if !begins.into_iter().any(|begin| text.get(begin).is_some_and(u8::is_ascii_digit)) {
        return (Cow::Borrowed(text), None);
    }
    let (mut lines, mut last) = (Vec::with_capacity(text.len()), None);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let found = stamp(line);
        lines.extend_from_slice(line.get(found.map_or(0, |found| found.len() + 1)..).unwrap_or_default());
        last = found.or(last);
    }
    (Cow::Owned(lines), last.map(str::to_owned))
}

/// An RFC 3339 time before a space at the beginning of a line.
fn stamp(line: &[u8]) -> Option<&str> {
    if !line.first()?.is_ascii_digit() {
        return None;
    }
    let space = memchr(b' ', line.get(..line.len().min(40))?)?;
    let text = std::str::from_utf8(line.get(..space)?).ok()?;
    seclog_proto::rfc3339::parse(text).map(|_| text)
}

#[cfg(test)]
mod tests {
    use super::without_stamps;

    #[test]
    fn the_time_before_a_line_is_left_out_and_the_last_is_told() {
        let text = b"2026-11-26T14:33:45.1Z {\"a\":1}\n2026-11-26T14:33:46.123456789Z {\"b\":2}\nno time\n";
        let (lines, last) = without_stamps(text);
        assert_eq!(std::str::from_utf8(&lines).unwrap(), "{\"a\":1}\n{\"b\":2}\nno time\n");
        assert_eq!(last.as_deref(), Some("2026-11-26T14:33:46.123456789Z"));
        let (lines, last) = without_stamps(b"{\"a\":1}\n");
        assert_eq!((&*lines, last), (&b"{\"a\":1}\n"[..], None));
    }
}
