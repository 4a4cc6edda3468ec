//! How each route fares: what came, when, how late, and up to which time everything has come.

use super::Taken;
use crate::join::Route;
use crate::telemetry::Telemetry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How late a webhook's event may be, nanoseconds: up to 30 s until a batch is sent, and five tries of up to 30 s each
/// with waits between them.
const WEBHOOK_LATENESS_NS: u64 = 250_000_000_000;
/// By how much events may overtake each other in a log: nanoseconds.
const DISORDER_NS: u64 = 2_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;

type Label = [(&'static str, &'static str); 1];

/// All routes. Clones are the same.
#[derive(Debug, Clone)]
pub struct RouteMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    routes: Mutex<BTreeMap<Route, State>>,
    counts: Counts,
    gauges: Gauges,
}

#[derive(Debug, Default)]
struct State {
    /// When this process began to listen; nanoseconds since 1970, as all times here.
    started: u64,
    first_event: Option<u64>,
    last_event: u64,
    last_arrival: u64,
    /// Up to which event time each source has been read; 0: it is behind.
    sources: BTreeMap<u64, Arc<AtomicU64>>,
}

#[derive(Debug, Default)]
struct Counts {
    events: Family<Label, Counter>,
    new: Family<Label, Counter>,
    seen: Family<Label, Counter>,
    repeated: Family<Label, Counter>,
    late: Family<Label, Counter>,
    quarantined: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    gaps: Family<Label, Counter>,
    errors: Family<Label, Counter>,
    forgotten: Gauge,
    known: Gauge,
}

#[derive(Debug, Default)]
struct Gauges {
    last_event: Family<Label, Gauge>,
    lag: Family<Label, Gauge>,
    watermark: Family<Label, Gauge>,
    silent: Family<Label, Gauge>,
    sources: Family<Label, Gauge>,
}

/// One source of a route: a file, a pod's log. It is gone when this is dropped.
#[derive(Debug)]
pub struct RouteHealth {
    all: RouteMetrics,
    route: Route,
    number: u64,
    read_until: Arc<AtomicU64>,
}

impl RouteMetrics {
    pub(super) fn new(routes: &[Route], now: u64, telemetry: &Telemetry) -> Self {
        let state = |route: &Route| (*route, State { started: now, ..State::default() });
        let routes: BTreeMap<Route, State> = routes.iter().map(state).collect();
        let (counts, gauges) = (Counts::default(), Gauges::default());
        counts.register(telemetry);
        gauges.register(telemetry);
        for route in routes.keys() {
            counts.events.get_or_create(&label(*route)).inc_by(0);
            gauges.silent.get_or_create(&label(*route)).set(0);
        }
        Self(Arc::new(Inner { routes: Mutex::new(routes), counts, gauges }))
    }

    pub(super) fn source(&self, route: Route) -> RouteHealth {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let read_until = Arc::new(AtomicU64::new(0));
        let mut routes = self.routes();
        let sources = &mut routes.entry(route).or_default().sources;
        sources.insert(number, Arc::clone(&read_until));
        self.0.gauges.sources.get_or_create(&label(route)).set(whole(sources.len() as u64));
        RouteHealth { all: self.clone(), route, number, read_until }
    }

    pub(super) fn took(&self, route: Route, total: u64, last_stage_time: u64, now: u64, taken: &Taken) {
        let Taken { new, seen, repeated, late, quarantined } = *taken;
        let label = label(route);
        let Counts { events, new: new_events, seen: seen_events, repeated: again, late: late_events, .. } =
            &self.0.counts;
        events.get_or_create(&label).inc_by(total);
        new_events.get_or_create(&label).inc_by(new);
        seen_events.get_or_create(&label).inc_by(seen);
        again.get_or_create(&label).inc_by(repeated);
        late_events.get_or_create(&label).inc_by(late);
        self.0.counts.quarantined.get_or_create(&label).inc_by(quarantined);
        if total == 0 {
            return;
        }
        let mut routes = self.routes();
        let state = routes.entry(route).or_default();
        state.last_arrival = state.last_arrival.max(now);
        if last_stage_time > 0 {
            state.first_event = Some(state.first_event.map_or(last_stage_time, |first| first.min(last_stage_time)));
            state.last_event = state.last_event.max(last_stage_time);
            self.0.gauges.last_event.get_or_create(&label).set(whole(state.last_event / SECOND_NS));
            self.0.gauges.lag.get_or_create(&label).set(whole(now.saturating_sub(last_stage_time) / SECOND_NS));
        }
    }

    pub(super) fn refused(&self, route: Route) {
        self.0.counts.refused.get_or_create(&label(route)).inc();
    }

    pub(super) fn failed(&self, route: Route) {
        self.0.counts.errors.get_or_create(&label(route)).inc();
    }

    pub(super) fn gap(&self, route: Route) {
        self.0.counts.gaps.get_or_create(&label(route)).inc();
    }

    pub(super) fn remembers(&self, known: usize, forgotten: u64) {
        self.0.counts.known.set(whole(known as u64));
        self.0.counts.forgotten.set(whole(forgotten));
    }

    /// Up to which event time everything has come by one route at least; and when something came last.
    pub(super) fn watermark(&self) -> (u64, u64) {
        let routes = self.routes();
        let mut most = 0;
        for (route, state) in &*routes {
            let until = state.watermark(*route);
            self.0.gauges.watermark.get_or_create(&label(*route)).set(whole(until / SECOND_NS));
            most = most.max(until);
        }
        (most, routes.values().map(|state| state.last_arrival).max().unwrap_or_default())
    }

    /// Routes by which nothing came for so long, and since when.
    pub(super) fn silent(&self, now: u64, for_ns: u64) -> BTreeMap<Route, u64> {
        let routes = self.routes();
        let since = |state: &State| state.last_arrival.max(state.started);
        let silent = routes.iter().filter(|(_, state)| since(state).saturating_add(for_ns) < now);
        let silent: BTreeMap<Route, u64> = silent.map(|(route, state)| (*route, since(state))).collect();
        for route in routes.keys() {
            self.0.gauges.silent.get_or_create(&label(*route)).set(i64::from(silent.contains_key(route)));
        }
        silent
    }

    /// Whether the route should have brought an event of that time.
    pub(super) fn began(&self, route: Route, stage_time: u64) -> bool {
        let routes = self.routes();
        routes.get(&route).is_some_and(|state| state.first_event.unwrap_or(state.started) <= stage_time)
    }

    fn routes(&self) -> MutexGuard<'_, BTreeMap<Route, State>> {
        // A panic elsewhere leaves nothing half done here.
        self.0.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn watermark(&self, route: Route) -> u64 {
        match route {
            Route::Webhook => self.last_event.saturating_sub(WEBHOOK_LATENESS_NS),
            _ => {
                let read = self.sources.values().map(|until| until.load(Ordering::Relaxed)).min();
                read.unwrap_or_default().saturating_sub(DISORDER_NS)
            }
        }
    }
}

impl RouteHealth {
    /// The source was read to its present end; its last event was of this time.
    pub fn is_read_until(&self, stage_time: u64) {
        self.read_until.fetch_max(stage_time, Ordering::Relaxed);
    }

    /// The source could not be read. It is tried again.
    pub fn failed(&self) {
        self.all.failed(self.route);
    }
}

impl Drop for RouteHealth {
    fn drop(&mut self) {
        let mut routes = self.all.routes();
        if let Some(state) = routes.get_mut(&self.route) {
            state.sources.remove(&self.number);
            self.all.0.gauges.sources.get_or_create(&label(self.route)).set(whole(state.sources.len() as u64));
        }
    }
}

impl Counts {
    fn register(&self, telemetry: &Telemetry) {
        let Self { events, new, seen, repeated, late, quarantined, refused, gaps, errors, forgotten, known } = self;
        for (name, help, family) in [
            ("audit_events", "Audit events that came, those let go among them, by route.", events),
            ("audit_events_new", "Events that matter and were put into the journal.", new),
            ("audit_events_seen", "Events that another route had brought before.", seen),
            ("audit_events_repeated", "Events that the same route had brought before.", repeated),
            ("audit_events_late", "New events that were older than the horizon.", late),
            ("audit_events_quarantined", "What should have been an event and could not be read.", quarantined),
            ("audit_refused", "Batches that could not be written; their senders come again.", refused),
            ("audit_gaps", "Times that events may have been lost.", gaps),
            ("audit_errors", "Times that a source could not be read; it is tried again.", errors),
        ] {
            telemetry.register(name, help, family.clone());
        }
        telemetry.register("audit_events_known", "Events that are remembered to know copies of.", known.clone());
        telemetry.register("audit_events_forgotten", "Events forgotten for want of room.", forgotten.clone());
    }
}

impl Gauges {
    fn register(&self, telemetry: &Telemetry) {
        let Self { last_event, lag, watermark, silent, sources } = self;
        for (name, help, family) in [
            ("audit_last_event_seconds", "Time of the newest event, seconds since 1970, by route.", last_event),
            ("audit_lag_seconds", "How old the last event was when it came.", lag),
            ("audit_watermark_seconds", "Up to this event time everything has come by the route.", watermark),
            ("audit_route_silent", "1: nothing comes by the route any more.", silent),
            ("audit_sources", "Files and logs that are followed.", sources),
        ] {
            telemetry.register(name, help, family.clone());
        }
    }
}

fn label(route: Route) -> Label {
    [("route", route.as_str())]
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
