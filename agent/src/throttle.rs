//! A log line once in a while.

/// Lets one through in each interval.
#[derive(Debug)]
pub struct Throttle {
    interval_ns: u64,
    next_ns: u64,
}

// === impl Throttle ===

impl Throttle {
    pub fn new(interval_ns: u64) -> Self {
        Self { interval_ns, next_ns: 0 }
    }

    pub fn allows(&mut self, now_ns: u64) -> bool {
        let allowed = now_ns >= self.next_ns;
        if allowed {
            self.next_ns = now_ns.saturating_add(self.interval_ns);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::Throttle;

    #[test]
    fn one_of_many_gets_through_in_each_interval() {
        let mut throttle = Throttle::new(10);
        let allowed: Vec<u64> = (1..30).filter(|now| throttle.allows(*now)).collect();
        assert_eq!(allowed, [1, 11, 21]);
    }
}
