//! Where the members of a JSON object are, without building anything: strings and brackets are followed, nothing else is
//! looked at. What it accepts is a superset of JSON; `None` for what cannot be JSON by its strings and brackets.

use memchr::memchr2;

/// As deep as serde_json reads.
const DEEPEST: u32 = 127;
const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;
/// Strings are looked through by words up to here, then by memchr: most are short.
const WORDS: usize = 6;

/// One member of an object, as it stands in the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'a> {
    /// Between its quotes; `None` where it is written with escapes.
    pub(super) key: Option<&'a [u8]>,
    /// Whole: strings with their quotes.
    pub(super) value: &'a [u8],
}

/// Calls `each` for the members of the object that begins at `at`; the byte after its end.
#[inline]
pub(super) fn members<'a>(text: &'a [u8], at: usize, mut each: impl FnMut(Member<'a>)) -> Option<usize> {
    members_with(text, at, |key, begin| {
        let end = value(text, begin)?;
        each(Member { key, value: text.get(begin..end)? });
        Some(end)
    })
}

/// The same, for who finds the end of values himself: `each` gets a key and where its value begins.
#[inline]
pub(super) fn members_with<'a>(
    text: &'a [u8],
    at: usize,
    mut each: impl FnMut(Option<&'a [u8]>, usize) -> Option<usize>,
) -> Option<usize> {
    if text.get(at) != Some(&b'{') {
        return None;
    }
    let mut at = blank(text, at + 1);
    if text.get(at) == Some(&b'}') {
        return Some(at + 1);
    }
    loop {
        let Text { end, escaped } = string(text, at)?;
        let key = if escaped { None } else { Some(text.get(at + 1..end - 1)?) };
        at = blank(text, end);
        if text.get(at) != Some(&b':') {
            return None;
        }
        at = blank(text, each(key, blank(text, at + 1))?);
        match text.get(at)? {
            b',' => at = blank(text, at + 1),
            b'}' => return Some(at + 1),
            _ => return None,
        }
    }
}

/// Calls `each` with the begin of every element of the array that begins at `at`, and is told its end; the byte after the
/// array's end.
pub(super) fn elements(text: &[u8], at: usize, mut each: impl FnMut(usize) -> Option<usize>) -> Option<usize> {
    if text.get(at) != Some(&b'[') {
        return None;
    }
    let mut at = blank(text, at + 1);
    if text.get(at) == Some(&b']') {
        return Some(at + 1);
    }
    loop {
        at = blank(text, each(at)?);
        match text.get(at)? {
            b',' => at = blank(text, at + 1),
            b']' => return Some(at + 1),
            _ => return None,
        }
    }
}

/// The byte after the value that begins at `at`.
pub(super) fn value(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at)? {
        b'"' => string(text, at).map(|text| text.end),
        b'{' | b'[' => container(text, at),
        b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
            let rest = text.get(at..)?;
            let length =
                rest.iter().position(|byte| !matches!(byte, b'+' | b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'E'));
            Some(at + length.unwrap_or(rest.len()))
        }
        _ => None,
    }
}

/// The first byte from `at` on that is no white space of JSON.
pub(super) fn blank(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

fn container(text: &[u8], at: usize) -> Option<usize> {
    // One bit for each open bracket: 1 for a brace.
    let (mut open, mut depth) = (0_u128, 0_u32);
    let mut at = at;
    loop {
        match *text.get(at)? {
            b'"' => {
                at = string(text, at)?.end;
                continue;
            }
            byte @ (b'{' | b'[') => {
                depth += 1;
                if depth > DEEPEST {
                    return None;
                }
                open = open << 1 | u128::from(byte == b'{');
            }
            byte @ (b'}' | b']') => {
                if (open & 1 == 1) != (byte == b'}') {
                    return None;
                }
                open >>= 1;
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// A string's end, and whether there is a backslash in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    /// The byte after its closing quote.
    pub(super) end: usize,
    pub(super) escaped: bool,
}

/// The string whose opening quote is at `at`.
#[inline]
pub(super) fn string(text: &[u8], at: usize) -> Option<Text> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    for _ in 0..WORDS {
        let Some(word) = text.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes) else {
            break;
        };
        let found = zero_byte(word ^ (LOW * b'"' as u64)) | zero_byte(word ^ (LOW * b'\\' as u64));
        if found == 0 {
            at += 8;
            continue;
        }
        at += found.trailing_zeros() as usize / 8;
        if text.get(at) == Some(&b'"') {
            return Some(Text { end: at + 1, escaped: false });
        }
        break;
    }
    let mut escaped = false;
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        if text.get(at) == Some(&b'"') {
            return Some(Text { end: at + 1, escaped });
        }
        escaped = true;
        at += 2;
    }
}

/// The highest bit of each byte that is zero; the lowest one set is right, those above it may not be.
fn zero_byte(word: u64) -> u64 {
    word.wrapping_sub(LOW) & !word & HIGH
}
