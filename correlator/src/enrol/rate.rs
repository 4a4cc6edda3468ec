//! So many at once, and so many a second after that.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Rate {
    burst: f64,
    a_second: f64,
    state: Mutex<(f64, Instant)>,
}

impl Rate {
    pub(super) fn new(burst: u32, a_second: f64) -> Self {
        Self { burst: f64::from(burst), a_second, state: Mutex::new((f64::from(burst), Instant::now())) }
    }

    /// Takes one. An error says after which time there is one.
    pub(super) fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, last) = *state;
        let gained = now.saturating_duration_since(last).as_secs_f64() * self.a_second;
        let left = (left + gained).min(self.burst);
        if left < 1.0 {
            *state = (left, now.max(last));
            return Err(Duration::try_from_secs_f64((1.0 - left) / self.a_second).unwrap_or(Duration::from_secs(60)));
        }
        *state = (left - 1.0, now.max(last));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_so_many_a_second() {
        let start = Instant::now();
        let rate = Rate::new(3, 2.0);
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        for _ in 0..3 {
            assert!(rate.take(at(1000)).is_ok());
        }
        let wait = rate.take(at(1000)).unwrap_err();
        assert!(wait <= Duration::from_millis(500), "{wait:?}");
        assert!(rate.take(at(1400)).is_err());
        assert!(rate.take(at(1600)).is_ok());
        assert!(rate.take(at(1500)).is_err(), "a clock that goes back gives nothing");
        for _ in 0..3 {
            assert!(rate.take(at(60_000)).is_ok());
        }
        assert!(rate.take(at(60_000)).is_err());
    }
}
