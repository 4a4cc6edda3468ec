//! What is varied, and over which values.

/// One run of the simulator. Shares are percent.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) name: String,
    /// Sessions open at a time in each container, on average.
    pub(crate) concurrent: u64,
    /// Requests that all ask for the same command.
    pub(crate) identical: f64,
    /// Requests that an admission webhook marked.
    pub(crate) webhook: f64,
    /// How far the nodes' clocks are off, one ahead and one behind.
    pub(crate) skew_ms: u64,
    /// Audit events that vanish and nobody says so.
    pub(crate) undeclared_loss: f64,
    /// Stretches in which audit events, or records of a node, are lost and declared so.
    pub(crate) gaps: bool,
    /// Events and records that come twice, audit events also by the other route.
    pub(crate) duplicates: f64,
    /// By how much the delivery of one may be later than another's.
    pub(crate) reorder_ms: u64,
    /// Few pids that come round quickly, and pods that are replaced under the same name.
    pub(crate) reuse: bool,
    /// Sessions whose user tries to pass for another.
    pub(crate) spoofs: f64,
    pub(crate) sessions: u64,
    pub(crate) seed: u64,
}

impl Setting {
    fn plain(seed: u64, sessions: u64) -> Self {
        Self {
            name: String::new(),
            concurrent: 3,
            identical: 10.0,
            webhook: 0.0,
            skew_ms: 0,
            undeclared_loss: 0.0,
            gaps: false,
            duplicates: 0.0,
            reorder_ms: 200,
            reuse: false,
            spoofs: 0.0,
            sessions,
            seed,
        }
    }

    fn all_at_once(self) -> Self {
        Self { gaps: true, duplicates: 20.0, reorder_ms: 20_000, reuse: true, spoofs: 10.0, ..self }
    }
}

/// The short sweep takes every value of every parameter at least with each webhook share; the long one the products of the
/// first four, with two seeds.
pub(crate) fn sweep(long: bool) -> Vec<Setting> {
    let (seeds, sessions): (u64, u64) = if long { (2, 600) } else { (1, 240) };
    let mut settings = Vec::new();
    for seed in 1..=seeds {
        for webhook in [0.0, 50.0, 100.0] {
            let base = Setting { webhook, ..Setting::plain(seed, sessions) };
            let mut add = |name: &str, setting: Setting| {
                settings.push(Setting { name: name.to_owned(), seed: seed * 1000 + settings.len() as u64, ..setting });
            };
            let concurrencies: &[u64] = if long { &[1, 3, 5, 10, 20, 50] } else { &[1, 3, 10, 50] };
            let shares: &[f64] = if long { &[0.0, 10.0, 50.0, 100.0] } else { &[0.0, 10.0, 100.0] };
            for &concurrent in concurrencies {
                for &identical in shares {
                    add("crowd", Setting { concurrent, identical, ..base.clone() });
                    if long {
                        let crowd = Setting { concurrent, identical, ..base.clone() };
                        add("crowd, skew", Setting { skew_ms: 5_000, ..crowd.clone() });
                        add("crowd, loss", Setting { undeclared_loss: 5.0, ..crowd.clone() });
                        add("crowd, everything", crowd.all_at_once());
                    }
                }
            }
            for skew_ms in [900, 2_000, 5_000] {
                add("skew", Setting { skew_ms, ..base.clone() });
                add("skew, identical", Setting { skew_ms, identical: 100.0, ..base.clone() });
            }
            for undeclared_loss in [1.0, 5.0] {
                add("undeclared loss", Setting { undeclared_loss, ..base.clone() });
                add("undeclared loss, identical", Setting { undeclared_loss, identical: 100.0, ..base.clone() });
            }
            add("declared gaps", Setting { gaps: true, ..base.clone() });
            add("declared gaps, identical", Setting { gaps: true, identical: 100.0, ..base.clone() });
            add("duplicates", Setting { duplicates: 30.0, ..base.clone() });
            add("reordering", Setting { reorder_ms: 30_000, ..base.clone() });
            add("reordering, identical", Setting { reorder_ms: 30_000, identical: 100.0, ..base.clone() });
            add("reuse", Setting { reuse: true, ..base.clone() });
            add("spoofing", Setting { spoofs: 30.0, ..base.clone() });
            add("spoofing, identical", Setting { spoofs: 30.0, identical: 100.0, ..base.clone() });
            add("everything", base.clone().all_at_once());
            add("everything, identical", Setting { identical: 100.0, ..base.clone() }.all_at_once());
            add("everything, loss, skew", Setting { undeclared_loss: 5.0, skew_ms: 5_000, ..base }.all_at_once());
        }
    }
    settings
}
