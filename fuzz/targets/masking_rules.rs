//! Masking rules of any text on command lines of any text: no panic, bounded growth, and the default rules find nothing in
//! what they have masked.
//!
//! The input is a file of rules, a zero byte, and arguments with a zero byte between them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seclog_masking::Rules;
use std::sync::OnceLock;

fuzz_target!(|data: &[u8]| {
    static DEFAULT: OnceLock<Rules> = OnceLock::new();
    let default = DEFAULT.get_or_init(|| Rules::load("default").unwrap());
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let own = Rules::parse(parts.next().unwrap_or_default());
    let argv: Vec<String> = parts.map(str::to_owned).collect();

    let mut once = argv.clone();
    let masked = default.mask(&mut once);
    assert_eq!(masked, once != argv);
    let mut twice = once.clone();
    default.mask(&mut twice);
    assert_eq!(once, twice, "of {argv:?}");

    let Ok(own) = own else { return };
    let mut by_own = argv.clone();
    own.mask(&mut by_own);
    assert_eq!(by_own.len(), argv.len());
    for (after, before) in by_own.iter().zip(&argv) {
        assert!(after.len() <= (before.len() * 4).max(1024) * 3);
    }
});
