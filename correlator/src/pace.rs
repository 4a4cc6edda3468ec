//! The time of day as the join learns it: in steps, the same live and in a replay.

/// Nanoseconds.
pub(crate) const STEP_NS: u64 = 250_000_000;
/// Where nothing came for longer than this the steps become larger, nanoseconds.
const IDLE_NS: u64 = 60_000_000_000;

/// The time that a join knows, nanoseconds since 1970; 0: none yet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace(u64);

/// The way from one time to another.
#[derive(Debug)]
pub(crate) struct Steps {
    began: u64,
    until: u64,
}

impl Pace {
    pub(crate) fn time(self) -> u64 {
        self.0
    }

    /// The steps to a time, or to the last one before it.
    pub(crate) fn to(&mut self, time: u64) -> Steps {
        let until = time / STEP_NS * STEP_NS;
        if self.0 == 0 {
            self.0 = until.saturating_sub(STEP_NS);
        }
        Steps { began: self.0, until }
    }
}

impl Steps {
    /// The time that the join is to be told next.
    pub(crate) fn next(&mut self, pace: &mut Pace) -> Option<u64> {
        if pace.0 >= self.until {
            return None;
        }
        // Nobody ran, or nothing came: nothing happens there that a coarser step would miss.
        let step = match pace.0 - self.began {
            0..IDLE_NS => STEP_NS,
            elapsed => (elapsed / 8).max(STEP_NS),
        };
        pace.0 = (pace.0 + step).min(self.until);
        Some(pace.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(pace: &mut Pace, time: u64) -> Vec<u64> {
        let mut steps = pace.to(time);
        std::iter::from_fn(|| steps.next(pace)).collect()
    }

    #[test]
    fn time_comes_in_steps_and_never_goes_back() {
        let mut pace = Pace::default();
        let start = 1_795_473_004 * 1_000_000_000 + 7;
        assert_eq!(steps(&mut pace, start), [start - 7]);
        assert!(steps(&mut pace, start + STEP_NS - 8).is_empty());
        assert_eq!(steps(&mut pace, start + 3 * STEP_NS), [1, 2, 3].map(|step| start - 7 + step * STEP_NS));
        assert!(steps(&mut pace, start).is_empty());
    }

    #[test]
    fn a_day_without_anything_takes_few_steps_and_ends_where_it_should() {
        let mut pace = Pace::default();
        steps(&mut pace, STEP_NS * 1_000);
        let day = STEP_NS * 1_000 + 86_400 * 1_000_000_000;
        let steps = steps(&mut pace, day);
        assert!(steps.len() < 400 && steps.last() == Some(&day), "{} steps", steps.len());
    }
}
