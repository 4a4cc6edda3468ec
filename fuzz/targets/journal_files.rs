//! A journal's files after anything has happened to them: opened, read, checked and written on. No panic, no endless loop,
//! every number is either whole or missing, and what is appended afterwards is read back.
//!
//! The input is a list of changes to the files of a small log: each four bytes are a place and what to do there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seclog_journal::{Item, Log, Options, Reader, check};
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

const OPTIONS: Options = Options { segment_bytes: 400 };

/// Files of a log of several segments, as they were written.
fn pristine() -> &'static [(String, Vec<u8>)] {
    static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(dir.path(), OPTIONS).unwrap();
        for number in 0..9u32 {
            log.append(&[vec![b'a' + number as u8; 20 + 13 * number as usize]]).unwrap();
        }
        log.sync().unwrap();
        let mut files: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some())
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
            .collect();
        files.sort();
        files
    })
}

fn directory() -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let shm = std::path::Path::new("/dev/shm");
    let dir = DIR.get_or_init(|| if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap());
    dir.path().join("log")
}

fuzz_target!(|data: &[u8]| {
    let dir = directory();
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let mut files = pristine().to_vec();
    let mut rest = data;
    while let [what, file, high, low, tail @ ..] = rest {
        rest = tail;
        let count = files.len();
        let (_, bytes) = &mut files[usize::from(*file) % count];
        let at = usize::from(u16::from_be_bytes([*high, *low])) % bytes.len().max(1);
        match what % 6 {
            0 => bytes.truncate(at),
            1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= what | 1),
            2 => bytes.iter_mut().skip(at).take(16).for_each(|byte| *byte = 0),
            3 => {
                // Bytes of one's own, in place.
                let own = rest.len().min(84);
                let (own, tail) = rest.split_at(own);
                rest = tail;
                bytes.splice(at..(at + own.len()).min(bytes.len()), own.iter().copied());
            }
            4 => {
                let copy = bytes.get(at..).unwrap_or_default().to_vec();
                bytes.extend_from_slice(&copy);
                bytes.truncate(4096);
            }
            _ => bytes.clear(),
        }
    }
    for (name, bytes) in &files {
        fs::write(dir.join(name), bytes).unwrap();
    }
    let _ = check(&dir, |_| {});
    let read = || {
        let mut reader = Reader::new(&dir, 1);
        let (mut at, mut last) = (1, Vec::new());
        while let Ok(Some(item)) = reader.next(u64::MAX) {
            match item {
                Item::Entry(entry) => {
                    assert_eq!(entry.number, at);
                    at += 1;
                    last = entry.payload.to_vec();
                }
                Item::Missing(missing) => {
                    assert_eq!(missing.from, at);
                    assert!(missing.until > missing.from);
                    at = missing.until;
                }
            }
        }
        (at, last)
    };
    read();
    // Only a format version of later is refused.
    let Ok((mut log, _)) = Log::open(&dir, OPTIONS) else { return };
    log.append(&[b"afterwards"]).unwrap();
    log.sync().unwrap();
    let next = log.next();
    drop(log);
    assert_eq!(read(), (next, b"afterwards".to_vec()));
});
