//! What deciding costs: which audit events matter, beside parsing them typed (serde_json) and looking their keys up lazily
//! (sonic-rs), in one run on one core.
//!
//! Method: 1 GiB of each mix, made in blocks of 128 MiB from recorded lines of a real API server in random order, each with an
//! audit id of its own; 0.1, 1 and 10 % of the lines are such as matter, and a mix has long bodies with decoys inside strings.
//! CPU time of the thread (CLOCK_THREAD_CPUTIME_ID), so that who else runs counts little; each block is gone through three
//! times (the parsers once), and the least of these is summed over the blocks. GB are 10^9 bytes.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, which prints and may end by a panic")]

use nix::time::{ClockId, clock_gettime};
use seclog_correlator::audit::{Event, Feed, Filter};
use sonic_rs::JsonValueTrait;
use std::hint::black_box;
use std::time::Duration;

/// Of one mix at a time in memory; larger than any cache.
const BLOCK: usize = 128 << 20;
const WHOLE: usize = 1 << 30;
/// As log files are read.
const PIECE: usize = 256 << 10;
/// The API server's default for a batch.
const ITEMS: usize = 400;
const RUNS: usize = 3;

fn recording(name: &str) -> String {
    std::fs::read_to_string(format!("{}/../tests/fixtures/real-cluster/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn is_kept(line: &str) -> bool {
    serde_json::from_str::<Event>(line).is_ok_and(|event| event.head().kept().is_some())
}

/// A body as of a large object, with the words that the filter looks for inside a string and inside a key's value.
fn long_body(line: &str) -> String {
    let decoy = r#"\"objectRef\":{\"resource\":\"pods\",\"subresource\":\"exec\"},\"verb\":\"create\" "#;
    let body = format!(r#","requestObject":{{"kind":"ConfigMap","data":{{"a":"{}"}}}}}}"#, decoy.repeat(120));
    format!("{}{body}", line.strip_suffix('}').unwrap())
}

/// What lines a mix has.
struct Mix {
    name: &'static str,
    share: f64,
    with_long_bodies: bool,
}

const MIXES: [Mix; 4] = [
    Mix { name: "0.1 % relevant", share: 0.001, with_long_bodies: false },
    Mix { name: "1 % relevant", share: 0.01, with_long_bodies: false },
    Mix { name: "10 % relevant", share: 0.1, with_long_bodies: false },
    Mix { name: "1 %, long bodies, decoys", share: 0.01, with_long_bodies: true },
];

struct Block {
    text: String,
    relevant: u64,
    lines: u64,
}

/// xorshift64*: the same blocks in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn of<'a>(&mut self, lines: &'a [String]) -> &'a str {
        &lines[(self.next() >> 33) as usize % lines.len()]
    }
}

fn block(share: f64, kept: &[String], rest: &[String], random: &mut Random) -> Block {
    let mut block = Block { text: String::with_capacity(BLOCK + (1 << 20)), relevant: 0, lines: 0 };
    while block.text.len() < BLOCK {
        let is_relevant = ((random.next() >> 11) as f64 / (1_u64 << 53) as f64) < share;
        let line = random.of(if is_relevant { kept } else { rest });
        // Thirty-six characters of hexadecimal digits and dashes.
        let (before, id) = line.split_once("\"auditID\":\"").unwrap();
        let number = random.next();
        block.text.push_str(before);
        block.text.push_str(&format!(
            "\"auditID\":\"{:08x}-0000-4000-8000-{:012x}",
            number >> 32,
            number & 0xffff_ffff
        ));
        block.text.push_str(&id[36..]);
        block.text.push('\n');
        block.relevant += u64::from(is_relevant);
        block.lines += 1;
    }
    block
}

/// Bytes and the CPU time that they took.
#[derive(Default)]
struct Sum {
    bytes: usize,
    took: Duration,
}

impl Sum {
    /// The least of so many runs.
    fn add(&mut self, bytes: usize, runs: usize, mut run: impl FnMut()) {
        let took = (0..runs).map(|_| {
            let start = cpu_time();
            run();
            cpu_time() - start
        });
        self.took += took.min().unwrap_or_default();
        self.bytes += bytes;
    }

    fn rate(&self) -> f64 {
        self.bytes as f64 / self.took.as_secs_f64() / 1e9
    }
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn pieces(text: &[u8]) -> Vec<&[u8]> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let at = rest.len().min(PIECE);
        let end = rest[at..].iter().position(|byte| *byte == b'\n').map_or(rest.len(), |found| at + found + 1);
        let (piece, behind) = rest.split_at(end);
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

fn bodies(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let head = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;
    let bare = |line: &&str| line.replacen(r#""kind":"Event","apiVersion":"audit.k8s.io/v1","#, "", 1);
    lines
        .chunks(ITEMS)
        .map(|items| format!("{head}{}]}}", items.iter().map(bare).collect::<Vec<_>>().join(",")))
        .collect()
}

fn main() {
    let recorded = recording("kas-audit.log") + &recording("kas-audit-bulk.log");
    let (kept, rest): (Vec<String>, Vec<String>) = recorded.lines().map(str::to_owned).partition(|line| is_kept(line));
    let long: Vec<String> =
        rest.iter().enumerate().map(|(at, line)| if at % 10 == 0 { long_body(line) } else { line.clone() }).collect();
    println!("audit filter: GB a second of CPU time of one thread, over {} MiB of each mix", WHOLE >> 20);
    for Mix { name, share, with_long_bodies } in MIXES {
        let mut random = Random(0x5ec1_0900_0000_0001);
        let [mut filter, mut lists, mut whole, mut typed, mut lazy] = std::array::from_fn(|_| Sum::default());
        let (mut lines, mut relevant) = (0, 0);
        while filter.bytes < WHOLE {
            let block = block(share, &kept, if with_long_bodies { &long } else { &rest }, &mut random);
            let (text, bytes) = (&block.text, block.text.len());
            (lines, relevant) = (lines + block.lines, relevant + block.relevant);
            let pieces = pieces(text.as_bytes());
            filter.add(bytes, RUNS, || {
                let (mut filter, mut looked_at) = (Filter::default(), 0);
                for piece in &pieces {
                    filter.lines(piece, |_, _| looked_at += 1);
                }
                assert!(looked_at >= block.relevant, "the filter missed {}", block.relevant - looked_at);
            });
            whole.add(bytes, RUNS, || {
                let mut feed = Feed::default();
                let kept: usize = pieces.iter().map(|piece| black_box(feed.lines(piece)).events.len()).sum();
                assert_eq!(kept as u64, block.relevant);
            });
            let bodies = bodies(text);
            lists.add(bodies.iter().map(String::len).sum(), RUNS, || {
                let mut filter = Filter::default();
                let found: usize = bodies.iter().map(|body| filter.body(body.as_bytes()).unwrap().look.len()).sum();
                assert!(found as u64 >= block.relevant);
            });
            typed.add(bytes, 1, || {
                let kept = text.lines().filter(|line| is_kept(line)).count() as u64;
                assert_eq!(kept, block.relevant);
            });
            lazy.add(bytes, 1, || {
                for line in text.lines() {
                    let resource = sonic_rs::get_from_str(line, &["objectRef", "resource"]);
                    let verb = sonic_rs::get_from_str(line, &["verb"]);
                    black_box((resource.ok().and_then(|r| r.as_str().map(str::len)), verb.is_ok()));
                }
            });
        }
        println!(
            "{name:<26} {lines} lines, {relevant} relevant: NDJSON {:.2}, EventList bodies {:.2}; with the kept ones parsed \
             {:.2}; serde_json typed {:.2}, sonic-rs lazy {:.2}",
            filter.rate(),
            lists.rate(),
            whole.rate(),
            typed.rate(),
            lazy.rate()
        );
    }
}
