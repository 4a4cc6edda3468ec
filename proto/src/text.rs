//! Bytes that a process could choose, as text and back without loss.
//!
//! Valid UTF-8 stays as it is. Every other byte (0x80 to 0xff) becomes the private-use character U+EF00 + byte, that is
//! U+EF80 to U+EFFF; characters of that range in the input are themselves carried byte by byte. So two different byte
//! strings never give the same text, and [`to_bytes`] gives the input again.

use std::sync::Arc;

const ESCAPE: u32 = 0xef00;

/// Bytes to text; allocates once for valid UTF-8.
pub fn from_bytes(bytes: &[u8]) -> String {
    as_it_is(bytes).map_or_else(|| escaped(bytes), str::to_owned)
}

/// The same, to be shared; allocates once for valid UTF-8 as well.
pub fn shared(bytes: &[u8]) -> Arc<str> {
    as_it_is(bytes).map_or_else(|| escaped(bytes).into(), Into::into)
}

/// Text without anything to escape.
fn as_it_is(bytes: &[u8]) -> Option<&str> {
    // The escapes' range starts with the byte 0xee in UTF-8, which is rare: look before walking.
    std::str::from_utf8(bytes).ok().filter(|_| !bytes.contains(&0xee))
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if is_escape(character) {
                let mut buffer = [0; 4];
                character.encode_utf8(&mut buffer).bytes().for_each(|byte| text.push(escape(byte)));
            } else {
                text.push(character);
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push(escape(*byte)));
    }
    text
}

/// The bytes that [`from_bytes`] was given.
pub fn to_bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        if is_escape(character) {
            bytes.push((u32::from(character) - ESCAPE) as u8);
        } else {
            let mut buffer = [0; 4];
            bytes.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
        }
    }
    bytes
}

fn is_escape(character: char) -> bool {
    ('\u{ef80}'..='\u{efff}').contains(&character)
}

fn escape(byte: u8) -> char {
    // 0xef00 + any byte is a private-use character, never a surrogate.
    char::from_u32(ESCAPE + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::{from_bytes, shared, to_bytes};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes: Vec<u8>) {
            prop_assert_eq!(to_bytes(&from_bytes(&bytes)), bytes.clone());
            prop_assert_eq!(&*shared(&bytes), from_bytes(&bytes));
        }

        #[test]
        fn escapes_in_the_input_come_back(text in "[\u{ee80}-\u{f0ff}a\u{ef80}-\u{efff}]*") {
            prop_assert_eq!(to_bytes(&from_bytes(text.as_bytes())), text.as_bytes());
        }

        #[test]
        fn ordinary_text_is_unchanged(text in "[ -~äöü€😀\n\t]*") {
            prop_assert_eq!(from_bytes(text.as_bytes()), text);
        }
    }
}
