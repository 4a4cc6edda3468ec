//! Which image made which attempt, where only audit saw it.
//!
//! audit's time is early by up to a tick, and in a tick a process can have several images of one name: a shell that execs a
//! shell that execs a program is what `oc debug` starts. The order of attempts is known by their serial numbers, the order of
//! images by their execs, and every exec had one attempt. So all attempts of a process are placed together, in order, such
//! that as many execs as possible have theirs. Where several ways of placing them are as good, nothing is asserted.

use super::{
    attempts::Attempt,
    processes::{Image, Process},
};
use crate::{clock::TICK_NS, fuse::Verdict, record::Detail};

/// What is certain of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub generation: Option<u32>,
    /// The last attempt of its image: the one that the exec after it completes.
    pub is_last: Option<bool>,
}

/// Of all attempts of a process, in their order.
pub(super) fn standings(attempts: &[Attempt], process: &Process) -> Vec<Standing> {
    let feasible: Vec<Vec<u32>> = attempts.iter().map(|attempt| feasible(attempt, process)).collect();
    let possible = best(&feasible, |generation| process.image_after(generation).is_some());
    let standing = |index: usize| {
        let generation = only(&possible[index])?;
        let is_last = match possible.get(index + 1) {
            None => Some(true),
            Some(next) if !next.contains(&generation) => Some(true),
            Some(next) => only(next).map(|_| false),
        };
        Some(Standing { generation: Some(generation), is_last })
    };
    (0..attempts.len()).map(|index| standing(index).unwrap_or_default()).collect()
}

fn only(generations: &[u32]) -> Option<u32> {
    match generations {
        [one] => Some(*one),
        _ => None,
    }
}

/// Generations of the images that can have made an attempt, in order; never none.
fn feasible(attempt: &Attempt, process: &Process) -> Vec<u32> {
    let by_audit_alone = matches!(&attempt.record.detail, Detail::Verdict(Verdict { kernel: None, .. }, _));
    if !by_audit_alone {
        return vec![attempt.generation];
    }
    let from = attempt.time_boot_ns;
    let until = from + TICK_NS;
    let lived_then = |image: &&Image| {
        let ended = process.image_after(image.generation).map(|next| next.since_boot_ns);
        image.since_boot_ns <= until
            && ended.is_none_or(|ended| ended >= from)
            && image.generation >= process.first_open
    };
    let lived: Vec<&Image> = process.images().filter(lived_then).collect();
    let named: Vec<u32> =
        lived.iter().filter(|image| image.comm == attempt.record.comm).map(|image| image.generation).collect();
    match (named.as_slice(), lived.as_slice()) {
        ([], []) => vec![attempt.generation],
        // A name can change without an exec (prctl).
        ([], lived) => lived.iter().map(|image| image.generation).collect(),
        _ => named,
    }
}

/// For each attempt the generations that it has in any of the best ways to place all of them: in order, and so that the most
/// generations that were followed by another have an attempt.
fn best(feasible: &[Vec<u32>], was_followed: impl Fn(u32) -> bool) -> Vec<Vec<u32>> {
    let worth = |generation: u32| u32::from(was_followed(generation));
    // The best that can be had up to an attempt at each of its generations, itself included; and from it on, without it.
    let mut before: Vec<Vec<Option<u32>>> = Vec::with_capacity(feasible.len());
    for (index, generations) in feasible.iter().enumerate() {
        let best_of = |generation: &u32| {
            let Some(last) = index.checked_sub(1) else { return Some(worth(*generation)) };
            let ways = feasible[last].iter().zip(&before[last]);
            ways.filter(|(earlier, _)| *earlier <= generation)
                .filter_map(|(earlier, best)| {
                    Some((*best)? + if earlier == generation { 0 } else { worth(*generation) })
                })
                .max()
        };
        let row = generations.iter().map(best_of).collect();
        before.push(row);
    }
    let mut after: Vec<Vec<Option<u32>>> = vec![Vec::new(); feasible.len()];
    for (index, generations) in feasible.iter().enumerate().rev() {
        let best_of = |generation: &u32| {
            let Some(next) = feasible.get(index + 1) else { return Some(0) };
            let ways = next.iter().zip(&after[index + 1]);
            ways.filter(|(later, _)| *later >= generation)
                .filter_map(|(later, best)| Some((*best)? + if later == generation { 0 } else { worth(*later) }))
                .max()
        };
        after[index] = generations.iter().map(best_of).collect();
    }
    let most = before.last().and_then(|row| row.iter().flatten().max().copied());
    feasible
        .iter()
        .enumerate()
        .map(|(index, generations)| {
            let sums = before[index].iter().zip(&after[index]).map(|(before, after)| Some((*before)? + (*after)?));
            let of_best: Vec<u32> = generations
                .iter()
                .zip(sums)
                .filter(|(_, sum)| *sum == most)
                .map(|(generation, _)| *generation)
                .collect();
            // No way in order at all, as records out of order can have it: everything stays possible.
            if most.is_none() || of_best.is_empty() { generations.clone() } else { of_best }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::best;
    use proptest::prelude::*;

    #[test]
    fn two_attempts_of_two_images_of_one_name_each_have_their_own() {
        assert_eq!(best(&[vec![1, 2], vec![1, 2]], |generation| generation <= 2), [vec![1], vec![2]]);
    }

    #[test]
    fn an_attempt_too_many_leaves_open_which_of_the_first_two_failed() {
        assert_eq!(best(&[vec![1, 2], vec![1, 2], vec![1, 2]], |_| true), [vec![1], vec![1, 2], vec![2]]);
    }

    #[test]
    fn what_cannot_be_in_order_stays_open() {
        assert_eq!(best(&[vec![2], vec![1]], |_| true), [vec![2], vec![1]]);
        assert!(best(&[], |_| true).is_empty());
    }

    proptest! {
        /// Each number is how many attempts fail before the one that succeeds; the ticks blur neighbours.
        #[test]
        fn what_really_happened_is_always_among_the_possible(failing in prop::collection::vec(0usize..3, 1..8), blur in 0u32..3) {
            let last = failing.len() as u32;
            let truth: Vec<u32> =
                failing.iter().zip(0u32..).flat_map(|(failed, generation)| vec![generation; failed + 1]).collect();
            let feasible: Vec<Vec<u32>> =
                truth.iter().map(|generation| (generation.saturating_sub(blur)..=generation + blur).collect()).collect();
            let possible = best(&feasible, |generation| generation < last);
            for (possible, truth) in possible.iter().zip(&truth) {
                prop_assert!(possible.contains(truth), "{truth} is not in {possible:?}");
            }
        }
    }
}
